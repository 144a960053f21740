"""SQL of datasets and their images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, cast

from sqlalchemy import Connection, delete, insert, select

from controlplane.db import tables
from controlplane.domain.datasets import Dataset, DatasetImage

_datasets = tables.datasets
_images = tables.dataset_images


def insert_dataset(c: Connection, dataset: Dataset, images: Iterable[DatasetImage]) -> None:
    """Write a dataset and its images."""
    c.execute(insert(_datasets).values(**asdict(dataset)))
    rows = [{**asdict(image), "reasons": list(image.reasons)} for image in images]
    if rows:
        c.execute(insert(_images), rows)


def get(c: Connection, project_id: str, dataset_id: str) -> Dataset | None:
    """One dataset."""
    query = select(_datasets).where(_datasets.c.project_id == project_id, _datasets.c.id == dataset_id)
    row = c.execute(query).mappings().first()
    return Dataset(**cast("dict[str, Any]", dict(row))) if row is not None else None


def images(c: Connection, project_id: str, dataset_id: str) -> list[DatasetImage]:
    """The images of a dataset, rejected ones included, in order."""
    query = (
        select(_images)
        .where(_images.c.project_id == project_id, _images.c.dataset_id == dataset_id)
        .order_by(_images.c.position)
    )
    return [
        DatasetImage(**{**cast("dict[str, Any]", dict(row)), "reasons": tuple(row["reasons"])})
        for row in c.execute(query).mappings()
    ]


def remove_of(c: Connection, project_id: str, character_id: str) -> None:
    """Delete every dataset of a character; the blobs of its images are assets."""
    mine = select(_datasets.c.id).where(_datasets.c.project_id == project_id, _datasets.c.character_id == character_id)
    c.execute(delete(_images).where(_images.c.project_id == project_id, _images.c.dataset_id.in_(mine)))
    c.execute(delete(_datasets).where(_datasets.c.project_id == project_id, _datasets.c.character_id == character_id))

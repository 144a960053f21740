"""The identity measure: its cast, its copy rule, and that a judge can tell people apart at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import identity, identity_judge, networks
from sketch_base import characters


@pytest.fixture(scope="module", params=["ours", "other"])
def cast(request):
    return {"ours": identity_judge.our_cast, "other": identity_judge.other_cast}[request.param]()


def test_the_cast_has_eight_people_or_more(cast):
    assert len({person.slug for person in cast.people}) == len(cast.people) >= 8


def test_two_people_share_hair_and_clothes(cast):
    looks = [(p.look.hair_colour, p.look.hair_style, s) for p, s in zip(cast.people, cast.scenes, strict=True)]
    assert any(a == b for i, a in enumerate(looks) for b in looks[i + 1 :])


def test_no_two_people_have_the_same_marks(cast):
    assert len({person.marks for person in cast.people}) == len(cast.people)


def test_everybody_has_twenty_references_of_their_own(cast):
    assert [len(scenes) for scenes in cast.scenes] == [20] * len(cast.people)


def test_no_gate_scene_is_a_reference_scene(cast):
    for index in range(cast.tested):
        words = {scene.phrases for scene in cast.scenes[index]}
        assert not words & {scene.phrases for scene in identity_judge.gate_scenes(index)}


def test_gate_scenes_differ_in_clothes_and_background():
    scenes = identity_judge.gate_scenes(0)
    assert len({s.background for s in scenes}) == len({(s.clothes_colour, s.clothes_noun) for s in scenes}) == 8


def test_captions_name_nothing_of_the_identity():
    bram = characters.EXAMPLES[2]
    text = characters.caption(bram, identity_judge.gate_scenes(0)[0])
    assert text.startswith("brumok man, ")
    assert not any(word in text for word in ("beard", "helmet", "hair", "skin", "eyes"))


def test_a_reference_counts_as_a_copy_of_itself():
    references = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    threshold, near, far = identity.copy_threshold(references)
    assert near < threshold < far
    assert identity.count_copies(references[:2], references, threshold)[0] == 2


def test_another_picture_does_not_count_as_a_copy():
    generator = torch.Generator().manual_seed(0)
    references, others = (torch.rand(6, 3, 8, 8, generator=generator) * 2 - 1 for _ in range(2))
    assert identity.count_copies(others, references, identity.copy_threshold(references)[0])[0] == 0


def test_a_small_judge_tells_two_people_apart_on_new_drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(identity_judge, "MASK_STEPS", 15)
    monkeypatch.setattr(identity_judge, "WHO_STEPS", 40)
    monkeypatch.setattr(identity_judge, "BASE_DRAWINGS", 24)
    full = identity_judge.our_cast()
    pair = replace(full, people=full.people[:2], scenes=tuple(scenes[:8] for scenes in full.scenes[:2]))
    assert identity_judge.held_out_accuracy(identity_judge.Judge(pair).fitted(tmp_path), 4) >= 0.75


def test_a_fitted_network_stays_in_evaluation_mode():
    net = networks.Classifier({"a": 2}, (4, 8))

    def batch(generator):
        wanted = networks.pick(2, 8, generator)
        return wanted.view(-1, 1, 1, 1).float().expand(8, 3, 16, 16) * 2 - 1, wanted

    networks.fit(net, batch, lambda logits, wanted: torch.nn.functional.cross_entropy(logits["a"], wanted), 30, 0.01, 1)
    pictures = torch.stack([torch.full((3, 16, 16), -1.0), torch.full((3, 16, 16), 1.0)])
    assert (net.training, net.answers(pictures)["a"].tolist()) == (False, [0, 1])

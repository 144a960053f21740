"""RunPod: rents pods through its management API v2.

One GPU type per create call, no fallback of RunPod's own: candidates come from its catalogue and are tried in turn.
Creating is not idempotent: after an uncertain answer the pod is looked for by its name before anything is sent again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from controlplane.domain.rentals import Offer, PodOrder, PodWish, RentedPod
from controlplane.errors import LauncherRefused, LauncherUnpaid, LauncherUnreachable
from controlplane.launchers.runpod_wire import Answer, Patience, RunPodWire, Timing, Uncertain

PRICE_VARIABLE = "TROUPE_PRICE_PER_HOUR"
STATUS: Mapping[str, Literal["starting", "running", "stopped", "gone"]] = {
    "PROVISIONING": "starting",
    "STARTING": "starting",
    "RUNNING": "running",
    "EXITED": "stopped",
    "ERROR": "stopped",
    "TERMINATED": "gone",
}
STOCK: Mapping[str, Literal["none", "low", "medium", "high"]] = {"LOW": "low", "MEDIUM": "medium", "HIGH": "high"}
PLENTY = ("high", "medium", "low", "none")
CREATE_TRIES = 5


@dataclass(frozen=True)
class _No:
    """A candidate that could not be had: by RunPod's status 400 or 403, and its words."""

    offer: Offer
    status: int
    words: str


class RunPodLauncher:
    """The Launcher of one RunPod account; ``url`` is the API's base, such as ``https://api.runpod.io/v2``."""

    def __init__(self, url: str, key: str, timing: Timing | None = None) -> None:
        self._wire = RunPodWire(url, key, timing or Timing())

    @property
    def provider(self) -> str:
        """As pods register."""
        return "runpod"

    async def close(self) -> None:
        """Let go of connections."""
        await self._wire.close()

    async def offers(self, wish: PodWish) -> Sequence[Offer]:
        """The catalogue, best first: the order of the wish, else by price, then by stock."""
        query = {"include": "AVAILABILITY", "product": "POD", "count": str(wish.gpu_count), "cloud": wish.cloud}
        if wish.min_cuda:
            query["minCudaVersion"] = wish.min_cuda
        answer = await self._ask("GET", "/catalog/gpus", query)
        try:
            found = [_offer(gpu, wish) for gpu in _objects(answer, "gpus")]
        except (KeyError, TypeError, ValueError) as error:
            raise LauncherRefused(f"RunPod's catalogue is not as documented ({error!r}).") from None
        return sorted(found, key=lambda offer: _rank(offer, wish))

    async def rent(self, order: PodOrder, offers: Sequence[Offer]) -> RentedPod:
        """Try the offers in turn until RunPod gives a pod.

        422 and every other refusal ends it, 402 as LauncherUnpaid; 400 and 403 go on to the next offer.
        """
        patience = Patience(self._wire.timing.renting)
        refusals: list[_No] = []
        for offer in offers:
            got = await self._try(order, offer, patience)
            if isinstance(got, RentedPod):
                return got
            refusals.append(got)
        raise LauncherRefused(_words_of(refusals))

    async def list(self) -> Sequence[RentedPod]:
        """Every pod of the account but those of clusters."""
        return await self._list(Patience(self._wire.timing.patience))

    async def find(self, provider_id: str) -> RentedPod | None:
        """One pod, None where RunPod has none."""
        answer = await self._ask("GET", f"/pods/{quote(provider_id, safe='')}", may_be=(404,))
        pod = None if answer.status == 404 else _pod(answer.body)
        return None if pod is None or pod.status == "gone" else pod

    async def end(self, provider_id: str) -> bool:
        """Terminate a pod; False where RunPod has none."""
        answer = await self._ask("DELETE", f"/pods/{quote(provider_id, safe='')}", may_be=(404,))
        return answer.status != 404

    async def _list(self, patience: Patience) -> Sequence[RentedPod]:
        answer = await self._wire.ask("GET", "/pods", patience)
        return [_pod(pod) for pod in _objects(_unless_refused(answer), "pods")]

    async def _ask(
        self, method: str, path: str, params: Mapping[str, str] | None = None, may_be: Sequence[int] = ()
    ) -> Answer:
        answer = await self._wire.ask(method, path, Patience(self._wire.timing.patience), params)
        return answer if answer.status in may_be else _unless_refused(answer)

    async def _try(self, order: PodOrder, offer: Offer, patience: Patience) -> RentedPod | _No:
        """One offer, until it is certain whether there is a pod."""
        body, pause = _body(order, offer), self._wire.timing.pause
        why = ""
        for _ in range(CREATE_TRIES):
            try:
                answer = await self._wire.once("POST", "/pods", patience, body=body)
                if answer.status == 201:
                    return _created(answer)
            except Uncertain as error:
                why = str(error)
                await patience.wait(pause, why)
                pause *= 2
                pod = await self._named(order.name, patience)
                if pod is not None:
                    return pod
                continue
            if answer.status in (400, 403):
                return _No(offer, answer.status, answer.words)
            _unless_refused(answer)
        raise LauncherUnreachable(f"RunPod created no pod in {CREATE_TRIES} tries: {why}.")

    async def _named(self, name: str, patience: Patience) -> RentedPod | None:
        return next((pod for pod in await self._list(patience) if pod.name == name and pod.status != "gone"), None)


def _body(order: PodOrder, offer: Offer) -> dict[str, Any]:
    """The body of ``POST /pods``."""
    wish = order.wish
    gpu: dict[str, Any] = {"id": offer.gpu, "count": wish.gpu_count}
    if wish.min_cuda:
        gpu["minCudaVersion"] = wish.min_cuda
    body: dict[str, Any] = {
        "name": order.name,
        "image": order.image,
        "gpu": gpu,
        "cloud": wish.cloud,
        "disk": order.disk_gb,
        "ports": [f"{order.port}/http"],
        "env": {**order.env, PRICE_VARIABLE: f"{offer.price_per_hour:g}"},
    }
    if wish.data_centres:
        body["dataCenterIds"] = list(wish.data_centres)
    if order.registry:
        body["registry"] = order.registry
    if order.volume_id:
        body["mounts"] = {"network": [{"volumeId": order.volume_id, "path": order.volume_path}]}
    elif order.volume_gb:
        body["mounts"] = {"persistent": {"size": order.volume_gb, "path": order.volume_path}}
    return body


def _offer(gpu: Mapping[str, Any], wish: PodWish) -> Offer:
    cloud = wish.cloud.lower()
    price = float(gpu["price"][cloud]) * wish.gpu_count
    offer = Offer(
        gpu=str(gpu["id"]),
        name=str(gpu["name"]),
        memory_gb=int(gpu["memory"]),
        price_per_hour=price,
        stock=STOCK.get(str(gpu.get("availability")), "none"),
        obstacle=_obstacle(gpu, wish, price),
    )
    return offer


def _obstacle(gpu: Mapping[str, Any], wish: PodWish, price: float) -> str:
    cloud = wish.cloud.lower()
    if wish.gpus and gpu["id"] not in wish.gpus:
        return "was not asked for"
    if gpu["manufacturer"] != "NVIDIA":
        return f"is made by {gpu['manufacturer']}"
    if gpu["memory"] < wish.min_memory_gb:
        return f"has {gpu['memory']} GB, needed are {wish.min_memory_gb}"
    if not gpu[cloud] or price <= 0:
        return f"is not rented out in the {cloud} cloud"
    if gpu["maxCount"][cloud] < wish.gpu_count:
        return f"comes {gpu['maxCount'][cloud]} to a pod at most"
    if gpu.get("availability") not in STOCK:
        return "is out of stock"
    stocked = {centre["id"] for centre in gpu.get("dataCenters") or () if centre["availability"] in STOCK}
    if wish.data_centres and not stocked & set(wish.data_centres):
        return f"is out of stock in {', '.join(wish.data_centres)}"
    return ""


def _rank(offer: Offer, wish: PodWish) -> tuple[Any, ...]:
    asked = wish.gpus.index(offer.gpu) if offer.gpu in wish.gpus else len(wish.gpus)
    return bool(offer.obstacle), asked, offer.price_per_hour, PLENTY.index(offer.stock), offer.gpu


def _created(answer: Answer) -> RentedPod:
    try:
        return _pod(answer.body)
    except LauncherRefused as error:
        # There is a pod, but not its id: the list has it.
        raise Uncertain(error.detail) from None


def _pod(body: Mapping[str, Any]) -> RentedPod:
    """A pod of RunPod's; LauncherRefused for something else."""
    try:
        told = str(body["status"])
        cost = float(body.get("cost") or 0.0)
        return RentedPod(
            id=str(body["id"]),
            name=str(body["name"]),
            status=STATUS.get(told, "running"),
            told=told,
            gpu=str((body.get("gpu") or {}).get("id") or ""),
            price_per_hour=cost or None,
            created_at=_seconds(body.get("createdAt")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LauncherRefused(f"RunPod answered something that is no pod ({error!r}).") from None


def _seconds(text: Any) -> float | None:
    """RFC 3339 as epoch seconds."""
    return datetime.fromisoformat(str(text)).timestamp() if text else None


def _objects(answer: Answer, name: str) -> list[Mapping[str, Any]]:
    found = answer.body.get(name)
    if not isinstance(found, list):
        raise LauncherRefused(f"RunPod answered no list of {name}.")
    return [one for one in found if isinstance(one, dict)]


def _unless_refused(answer: Answer) -> Answer:
    """The answer, where it is a success."""
    if answer.status == 402:
        raise LauncherUnpaid(f"RunPod: {answer.words} (402). Add to the balance there; nothing was rented.")
    if answer.status >= 300:
        raise LauncherRefused(f"RunPod refused: {answer.words} ({answer.status}).")
    return answer


def _words_of(refusals: Sequence[_No]) -> str:
    names = ", ".join(no.offer.name for no in refusals)
    last = refusals[-1].words if refusals else "there was none"
    if any(no.status == 403 for no in refusals):
        told = "; ".join(f"{no.offer.name}: {no.words} ({no.status})" for no in refusals)
        return f"RunPod gave no pod: {told}."
    # RunPod answers 400 both when it is out of stock and when the request breaks a rule.
    hint = "When every candidate is refused it is usually the request: see the TROUPE_POD_* settings." * (
        len(refusals) > 1
    )
    return f"RunPod refused every candidate ({names}), the last one with: {last} (400). {hint}".strip()

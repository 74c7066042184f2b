"""A method that runs elsewhere: an endpoint of a Gradio app, a Space or any address.

The endpoint takes a picture first, whatever else it takes has defaults, and returns a picture, or
several values of which the first picture counts. The input travels as PNG, without loss. How long
it took includes the network and the queue there.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from baselines.base import Method, MethodError, MethodUnavailableError, Restoration, no_gpu, timed
from imaging.load import PhotoError, read_photo

ENDPOINT = "/restore"
TIMEOUT_SECONDS = 600.0


class Remote:
    """One endpoint, connected."""

    def __init__(
        self, name: str, title: str, where: str, endpoint: str, seed_argument: str | None
    ) -> None:
        from gradio_client import Client  # noqa: PLC0415 - slow, and only used here

        self.name, self.title = name, title
        self.endpoint, self.seed_argument = endpoint, seed_argument
        self.downloads = tempfile.TemporaryDirectory()  # goes when the method is unloaded
        self.client = Client(where, verbose=False, download_files=self.downloads.name)

    def restore(self, lq: Image.Image, *, seed: int = 0) -> Restoration:
        return timed(self.name, seed, lambda: self._call(lq, seed), endpoint=self.endpoint)

    def _call(self, lq: Image.Image, seed: int) -> Image.Image:
        from gradio_client import handle_file  # noqa: PLC0415 - slow, and only used here

        chance = {} if self.seed_argument is None else {self.seed_argument: seed}
        with tempfile.TemporaryDirectory() as folder:
            sent = Path(folder) / "lq.png"
            lq.save(sent)
            try:
                job = self.client.submit(handle_file(sent), api_name=self.endpoint, **chance)
                answer = job.result(timeout=TIMEOUT_SECONDS)
            except Exception as error:  # whatever the other side or the way there breaks with
                raise MethodError(
                    f"{self.title} did not answer: {type(error).__name__}: {error}"
                ) from error
        try:
            return read_photo(_picture(answer))
        except (LookupError, PhotoError) as error:
            raise MethodError(
                f"{self.title} answered without a picture that can be read: {error}"
            ) from error


def method(name: str, address: str, *, title: str = "", scale: int = 4) -> Method:
    """The card of a remote method.

    Args:
        name: key in files and tables.
        address: a Space id (owner/name) or a URL, then `#` and the endpoint, `/restore` if none,
            then `?` and the name of its parameter that takes the seed. Without it the seed
            reaches nobody, and the card says so.
        title: for people; the name if not given.
        scale: of its outputs.
    """
    where, _, call = address.partition("#")
    endpoint, _, seed_argument = call.partition("?")
    told = f"goes to {seed_argument}" if seed_argument else "is not passed on"
    return Method(
        name,
        title or name,
        "other",
        scale,
        partial(
            _load,
            name=name,
            title=title or name,
            where=where,
            endpoint=endpoint or ENDPOINT,
            seed_argument=seed_argument or None,
        ),
        requires=("gradio_client",),
        packages=("gradio_client",),
        concurrent=True,
        source=f"remote: {address}",
        licence="unknown: runs elsewhere",
        preprocessing=f"sent as PNG; the seed {told}",
        postprocessing="unknown: runs elsewhere",
        gpu_seconds=no_gpu,
        order=70,
    )


def _load(
    device: str, *, name: str, title: str, where: str, endpoint: str, seed_argument: str | None
) -> Remote:
    """Connect; the device is the other side's business.

    Raises:
        MethodUnavailableError: nobody answers there, or the endpoint does not exist.
    """
    del device
    try:
        remote = Remote(name, title, where, endpoint, seed_argument)
        api = remote.client.view_api(return_format="dict", print_info=False)
        named = api["named_endpoints"]
    except Exception as error:  # it answers with many kinds: network, HTTP, JSON, its own
        raise MethodUnavailableError(
            f"{title}: {where} cannot be reached ({type(error).__name__}). Is it running, and is "
            "this machine online?"
        ) from error
    if endpoint not in named:
        raise MethodUnavailableError(
            f"{title}: {where} has no endpoint {endpoint}; it has {', '.join(named) or 'none'}."
        )
    return remote


def _picture(answer: Any) -> str:
    """The path of the first picture in an answer, whose form is the app's.

    Raises:
        LookupError: there is none.
    """
    if isinstance(answer, str):
        return answer
    if isinstance(answer, dict):  # an image, or an update that carries one
        for key in ("path", "value", "image"):
            if answer.get(key):
                return _picture(answer[key])
    if isinstance(answer, list | tuple):
        for part in answer:
            try:
                found = _picture(part)
            except LookupError:
                continue
            if Path(found).is_file():
                return found
    raise LookupError(f"a {type(answer).__name__}")

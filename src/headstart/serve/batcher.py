"""Images of many requests computed together: decoded by a few threads, and by one thread handed to the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from headstart.allocator import keep_freed_memory
from headstart.data.loader import available_cores
from headstart.errors import NonFiniteError
from headstart.prediction.decoded import Decoded, decode_content, predict_decoded
from headstart.prediction.predictor import Predictor
from headstart.prediction.record import Prediction
from headstart.serve.counters import Counters
from headstart.serve.settings import Settings
from headstart.serve.uploads import Upload

_MOST_DECODERS = 8


class Full(Exception):
    """There is no room for so many images now."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """An image on its way, and where its answer goes."""

    name: str
    answer: Future[Prediction]
    decoded: Decoded | None = None


class Batcher:
    """A model at work on images of many threads. Each image's answer is a future of its own."""

    def __init__(self, predictor: Predictor, *, settings: Settings, counters: Counters) -> None:
        self._predictor, self._settings, self._counters = predictor, settings, counters
        self.batch_size = settings.batch_size or predictor.runs[0].evaluated.batch_size
        self._lock, self._waiting = Lock(), 0
        self._ready: SimpleQueue[_Item | None] = SimpleQueue()
        self._decoders = ThreadPoolExecutor(min(available_cores(), _MOST_DECODERS), thread_name_prefix="decode")
        self._computing = Thread(target=self._compute_all, name="compute", daemon=True)
        self._computing.start()

    def submit(self, uploads: Sequence[Upload]) -> list[Future[Prediction]]:
        """The answers to come, in order; one that is cancelled is not computed.  Raises: Full: there is no room."""
        with self._lock:
            if self._waiting + len(uploads) > self._settings.queue:
                raise Full
            self._waiting += len(uploads)
        self._counters.add("headstart_waiting_images", count=len(uploads))
        return [self._begin(upload) for upload in uploads]

    def close(self) -> None:
        """Compute what is waiting, and end the threads."""
        self._decoders.shutdown()
        self._ready.put(None)
        self._computing.join()

    def _begin(self, upload: Upload) -> Future[Prediction]:
        answer: Future[Prediction] = Future()
        answer.add_done_callback(self._leave)
        if upload.error is not None:
            self._reject(answer, name=upload.name, error=upload.error)
            return answer
        decoding = self._decoders.submit(decode_content, self._predictor, upload.content, name=upload.name)
        answer.add_done_callback(lambda _: decoding.cancel())
        decoding.add_done_callback(partial(self._take_decoded, _Item(name=upload.name, answer=answer)))
        return answer

    def _leave(self, _: Future[Prediction]) -> None:
        with self._lock:
            self._waiting -= 1
        self._counters.add("headstart_waiting_images", count=-1)

    def _reject(self, answer: Future[Prediction], *, name: str, error: str) -> None:
        if answer.set_running_or_notify_cancel():
            self._counters.add("headstart_images_total", "unreadable")
            answer.set_result(Prediction(path=name, error=error))

    def _take_decoded(self, item: _Item, decoding: Future[Decoded]) -> None:
        if decoding.cancelled() or item.answer.cancelled():
            return
        if (failure := decoding.exception()) is not None:
            self._fail([item], failure)
        elif (decoded := decoding.result()).error is not None:
            self._reject(item.answer, name=item.name, error=decoded.error)
        else:
            self._ready.put(_Item(name=item.name, answer=item.answer, decoded=decoded))

    def _fail(self, items: Sequence[_Item], failure: BaseException) -> None:
        logging.getLogger(__name__).error("an image could not be computed", exc_info=failure)
        for item in items:
            if item.answer.running() or item.answer.set_running_or_notify_cancel():
                self._counters.add("headstart_images_total", "failed")
                item.answer.set_exception(failure)

    def _compute_all(self) -> None:
        with keep_freed_memory():
            while items := self._next_items():
                wanted = [item for item in items if item.answer.set_running_or_notify_cancel()]
                if wanted:
                    self._compute(wanted)

    def _next_items(self) -> list[_Item]:
        """The images of the next batch; none at the end. It waits no longer than there are others on their way."""
        items = list[_Item]()
        if (first := self._ready.get()) is None:
            return items
        items.append(first)
        ends = time.monotonic() + self._settings.wait_seconds
        while len(items) < self.batch_size:
            left = 0.0 if len(items) >= self._waiting else max(0.0, ends - time.monotonic())
            try:
                item = self._ready.get(timeout=left)
            except Empty:
                break
            if item is None:
                self._ready.put(None)  # for the next call
                break
            items.append(item)
        return items

    def _compute(self, items: Sequence[_Item]) -> None:
        """Answer these images; where a batch fails, each of its images is computed by itself."""
        images, started = [item.decoded for item in items if item.decoded is not None], time.perf_counter()
        try:
            found = predict_decoded(self._predictor, images, rows=self._rows(len(images)))
        except Exception as error:  # a model may raise anything; the service goes on with the next batch
            if len(items) > 1:
                for item in items:
                    self._compute([item])
            elif isinstance(error, NonFiniteError):
                self._counters.add("headstart_images_total", "failed")
                items[0].answer.set_result(Prediction(path=items[0].name, error="the model's outputs are not finite"))
            else:
                self._fail(items, error)
            return
        self._counters.observe("headstart_batch_images", len(items))
        self._counters.observe("headstart_batch_seconds", time.perf_counter() - started)
        self._counters.add("headstart_images_total", "predicted", count=len(items))
        for item, prediction in zip(items, found, strict=True):
            item.answer.set_result(prediction)

    def _rows(self, images: int) -> int:
        if not self._settings.exact:
            return images
        return self._settings.batch_size or self._predictor.runs[0].evaluated.size_for(images)

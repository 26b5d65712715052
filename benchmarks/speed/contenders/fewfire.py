"""fewfire, through ``Trainer.fit``: a training run in a thread of its own, which waits when its Source is asked.

The Source hands out as many batches as the harness has granted. So a measured step is all that happens between one
request for a batch and the next: gathering the rows (and the order of a new epoch), preprocess (there is none), the
engine's step, what is counted, steered and logged after it. Nothing of the loop is left out and nothing is called that
a user does not call. No other thread computes meanwhile.

Settings are the defaults. What defaults take from the length of a run is set as in one of 3,000 steps, the default
length: a line of the log every 30 steps, dead after 300. There is no folder, hence no checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from contenders import LEARNING_RATE, PREFIXES, WITH_AUXK, Contender, Job, Start

__all__ = ["Peer", "engine"]


class Enough(Exception):
    """Ends ``Trainer.fit`` from within."""


class Gate:
    """A Source whose batches for training come as they are granted."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.left = 0
        self.closed = False
        self.go, self.arrived = threading.Semaphore(0), threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def batches(self, size: int, *, epoch: int | None = None, **order: Any) -> Iterator[Any]:
        if epoch is None:  # a look at the data before the first step
            yield from self.source.batches(size, **order)
            return
        batches = self.source.batches(size, epoch=epoch, **order)
        while True:
            if self.left == 0:
                self.arrived.release()
                self.go.acquire()
                if self.closed:
                    raise Enough
            batch = next(batches, None)
            if batch is None:  # the same grant will do for the first of the next epoch
                return
            self.left -= 1
            yield batch


class Peer(Contender):
    name = "fewfire"
    package = "fewfire"
    kinds = ("topk", "batchtopk", "l1", "kl", "jumprelu", "matryoshka")
    engine: ClassVar[str] = "auto"

    def __init__(self, job: Job) -> None:
        import fewfire as ff

        super().__init__(job)
        activations = {
            "topk": ff.TopK(job.k),
            "batchtopk": ff.BatchTopK(job.k),
            "matryoshka": ff.BatchTopK(job.k),
            "l1": "relu",
            "kl": "sigmoid",
            "jumprelu": "jumprelu",
        }
        self.sparse = job.kind in WITH_AUXK
        self.model = ff.Autoencoder(job.d, job.n_latents, activations[job.kind])
        config = ff.TrainConfig(
            steps=10_000_000,
            log_every=30,
            dead_after=300 * job.batch,
            batch_size=job.batch,
            learning_rate=LEARNING_RATE,
            threads=job.threads,
            engine=self.engine,
            device="cpu",
        )
        terms = [ff.MatryoshkaMSE(prefixes=PREFIXES), ff.AuxK()] if job.kind == "matryoshka" else None
        self.gate = Gate(ff.ArraySource(job.rows))
        self.trainer = ff.Trainer(self.model, self.gate, terms, config, progress=False)
        self.note = f"engine {self.trainer.engine_reason}"
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()
        self._wait()

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except Enough:
            pass
        except BaseException as error:
            self.error = error
        self.gate.arrived.release()

    def _wait(self) -> None:
        self.gate.arrived.acquire()
        if self.error is not None:
            raise self.error

    def steps(self, n: int) -> None:
        self.gate.left = n
        self.gate.go.release()
        self._wait()

    def encode(self, x: Tensor) -> Any:
        return self.model.encode_sparse(x) if self.sparse else self.model.encode(x)

    def decode(self, codes: Any) -> Tensor:
        return self.model.decode(codes)

    def start(self, dead: float) -> Start:
        """What it has learned, for everyone to continue from."""
        return Start.with_dead(*(p.detach() for p in self._weights()), share=dead)

    def _weights(self) -> list[Tensor]:
        encoder, decoder = self.model.encoder, self.model.decoder
        return [encoder.W_enc, encoder.b_enc, decoder.W_dec, decoder.b_dec]

    def take(self, start: Start) -> None:
        for mine, given in zip(self._weights(), start, strict=False):
            mine.data.copy_(given)
        self.trainer.state.since_fired.copy_(start.dead * self.trainer.state.dead_after)

    def n_dead(self) -> int:
        return int(self.trainer.state.dead.sum())

    def close(self) -> None:
        self.gate.closed = True
        self.gate.go.release()
        self.thread.join()


def engine(name: str) -> type[Peer]:
    """The same with an engine asked for by name."""
    if name == "auto":
        return Peer
    label = {"fused": "plain torch"}.get(name, name)
    return type(f"Peer_{name}", (Peer,), {"engine": name, "name": f"fewfire ({label})"})

"""The order of streams on a GPU, without one: the real writer and statistics, under torch's CUDA sanitizer.

Streams, events and copies are stand-ins. A copy that does not block happens only when somebody waits for
it, and each kernel, wait and read by the host is told to the sanitizer, which is plain Python and says
which accesses nothing has put in order. It knows nothing of the allocator, so `record_stream` is held
apart.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from obstore.store import MemoryStore
from torch.utils._python_dispatch import TorchDispatchMode

from neoscope.errors import CheckError
from neoscope.format import chunks
from neoscope.format.arrays import array_schemas
from neoscope.pipeline import layer_writer
from neoscope.pipeline.layer_writer import LayerWriter
from neoscope.spec import RunSpec
from neoscope.statistics import gpu, length_accumulator, neuron_accumulator
from neoscope.statistics.length_accumulator import LengthStatistics
from neoscope.statistics.neuron_accumulator import NeuronStatistics
from neoscope.storage.store import Store

sanitizer = pytest.importorskip(
    "torch.cuda._sanitizer", reason="torch keeps its sanitizer elsewhere"
)
CALLS = (
    *("kernel_launch", "stream_creation", "stream_synchronization"),
    *("event_record", "event_wait", "event_synchronization"),
)
if missing := [name for name in CALLS if not hasattr(sanitizer.EventHandler, f"_handle_{name}")]:
    pytest.skip(f"torch's sanitizer has no {missing} any more", allow_module_level=True)

LAYERS, SEQUENCES, POSITIONS, NEURONS = 5, 4, 8, 48
MAIN, COPIES, HOST = 0, 1, 2  # streams; the host's reads are those of one more


class Device(TorchDispatchMode):
    """A GPU of which only the order is real. Its tensors lie in the host's memory."""

    def __init__(self, *, no_stream_wait: bool = False, no_host_wait: bool = False) -> None:
        super().__init__()
        self.handler = sanitizer.EventHandler()
        self.handler._handle_stream_creation(COPIES)
        self.handler._handle_stream_creation(HOST)
        self.faults = (no_stream_wait, no_host_wait)
        self.stream = MAIN
        self.errors: list[Any] = []
        self.events = 0
        self.delayed: list[tuple[int, Callable[[], object]]] = []
        self.recorded: list[tuple[int, int]] = []  # data pointer and stream of `record_stream`
        self.copied: list[int] = []  # data pointers that a copy which does not block reads
        self.lock = threading.RLock()

    def launch(self, stream: int, reads: set[int], writes: set[int], what: str) -> None:
        names = {pointer: [what] for pointer in reads | writes}
        with self.lock:
            found = self.handler._handle_kernel_launch(
                stream, reads - writes, writes, writes, what, names
            )
            self.errors += found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        parsed = Arguments()
        factory = bool(sanitizer.FACTORY_FUNCTION_REGEX.match(func._schema.name))
        parsed.parse_inputs(func._schema, args, kwargs, is_factory=factory)
        if func is torch.ops.aten.copy_.default and len(args) == 3 and args[2]:
            self.launch(self.stream, parsed.dataptrs_read, parsed.dataptrs_written, "copy")
            self.copied += [args[1].data_ptr()]
            # By numpy, whatever thread does it later, and of what is there by then.
            into, source = args[0].numpy(), args[1].numpy()
            self.delayed.append((self.events + 1, functools.partial(np.copyto, into, source)))
            return args[0]
        outputs = func(*args, **kwargs)
        parsed.parse_outputs(func._schema, outputs, is_factory=factory)
        self.launch(self.stream, parsed.dataptrs_read, parsed.dataptrs_written, str(func))
        return outputs

    def reach(self, event: int) -> None:
        """Let the copies before an event happen."""
        for number, copy in self.delayed:
            if number <= event:
                copy()
        self.delayed = [each for each in self.delayed if each[0] > event]

    def read_by_host(self, pointer: int) -> None:
        """The host reads memory of its own, and launches nothing more before it has."""
        with self.lock:
            self.launch(HOST, {pointer}, set(), "the host reads")
            self.handler._handle_stream_synchronization(HOST)


class Arguments(sanitizer.ArgumentHandler):  # type: ignore[misc, name-defined]
    """The sanitizer's own reading of an operator's schema, of tensors by their storage: here a slot's
    rows and a layer's views are one allocation each, and all of them are on the device."""

    def _handle_argument(
        self,
        value: Any,
        is_write: bool,
        metadata_only: bool,
        name: str | None = None,
        is_output: bool = False,
    ) -> None:
        if isinstance(value, torch.Tensor) and value.numel():
            pointer = value.untyped_storage().data_ptr()
            if is_write:
                self.dataptrs_written.add(pointer)
            elif not metadata_only:
                self.dataptrs_read.add(pointer)


class Stream:
    def __init__(self, device: Device, number: int) -> None:
        self.device, self.number = device, number

    def wait_stream(self, other: Stream) -> None:
        if not self.device.faults[0]:
            event = Event(self.device)
            event.record(other)
            self.device.handler._handle_event_wait(event.number, self.number)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self, stream: Stream) -> None:
        with self.device.lock:
            self.device.events += 1
            self.number = self.device.events
            self.device.handler._handle_event_record(self.number, stream.number)

    def synchronize(self) -> None:
        if not self.device.faults[1]:
            with self.device.lock:
                self.device.reach(self.number)
                self.device.handler._handle_event_synchronization(self.number)


def torch_on(device: Device, blocking: list[bool]) -> Any:
    """torch as the writer sees it, with streams and events of `device`; all else is torch's own.

    `blocking` is told of each event whether it blocks.
    """

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        device.stream = stream.number
        yield
        device.stream = MAIN

    def event(**options: bool) -> Event:
        blocking.append(options.get("blocking", False))
        return Event(device)

    def empty(*shape: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        assert pin_memory  # else the copy of a real GPU is not delayed, but staged
        return torch.empty(*shape, **options)

    main, copies = Stream(device, MAIN), Stream(device, COPIES)
    cuda = SimpleNamespace(
        Stream=lambda _device: copies, Event=event, stream=on, current_stream=lambda _device: main
    )
    return SimpleNamespace(**{**vars(torch), "cuda": cuda, "empty": empty})


def layers_of_a_batch(device: Device, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Store layers and add up their statistics, as a pass does that writes each over the one before.

    Returns whether each event blocks. Raises what is stored wrongly.
    """
    blocking: list[bool] = []
    monkeypatch.setattr(layer_writer, "torch", torch_on(device, blocking))
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda tensor, stream: device.recorded.append((tensor.data_ptr(), stream.number)),
    )
    put_chunk = layer_writer.put_chunk

    def put(store: Store, key: str, schema: Any, buffer: Any, record: str) -> Any:
        pointer = buffer.__array_interface__["data"][0]
        device.read_by_host(max(each for each in slots if each <= pointer))
        return put_chunk(store, key, schema, buffer, record)

    monkeypatch.setattr(layer_writer, "put_chunk", put)
    monkeypatch.setattr(layer_writer, "ring_slots", lambda *_: 2)
    spec = RunSpec(sequences=SEQUENCES, positions=POSITIONS)
    schemas = array_schemas(spec, layers=range(LAYERS), neurons=NEURONS)
    store = Store("memory", MemoryStore())  # type: ignore[arg-type]
    names, cpu = [f"MLP_{number}" for number in range(LAYERS)], torch.device("cpu")
    by_length = LengthStatistics(
        np.arange(1, 9, dtype=np.uint16), layers=names, neurons=NEURONS, device=cpu
    )
    by_neuron = NeuronStatistics(layers=names, neurons=NEURONS, tokens=99, device=cpu, contexts=3)
    lengths = (
        np.arange(SEQUENCES * POSITIONS).reshape(SEQUENCES, POSITIONS).astype(np.uint16) % 8 + 1
    )
    values = torch.empty(SEQUENCES, POSITIONS, NEURONS)
    with closing(LayerWriter(store, schemas["MLP_0"], torch.device("cuda"))) as writer:
        taken = [writer._free.get() for _ in range(writer._free.qsize())]
        slots = [slot.host.data_ptr() for slot in taken]
        for slot in taken:
            writer._free.put(slot)
        placed, tokens = by_length.place(lengths), by_neuron.place(lengths)
        for number, name in enumerate(names):
            with device:
                values.fill_(number)
                writer.write(schemas[name], 0, values, "records/none")
                by_length.add(name, values, placed)
                by_neuron.add(name, values, tokens, 0)
        stored = {
            name: [part.result() for part in parts] for name, parts in writer.finish().items()
        }
    by_length.check()
    by_neuron.check()
    for number in range(LAYERS):
        expected = np.full(math.prod(schemas["MLP_0"].chunks), number, np.float32)
        for part in stored[f"MLP_{number}"]:
            assert part.digest == chunks.digest(expected.reshape(schemas["MLP_0"].chunks))
    return blocking


@pytest.fixture(autouse=True)
def statistics_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics whose kernels are told to the device as operators with these arguments."""

    def by_length(rows: torch.Tensor, _placed: Any, *state: torch.Tensor) -> None:
        for each in state:
            each.add_(rows.flatten()[0].to(each.dtype) * 0)

    def by_neuron(
        values: torch.Tensor, placed: Any, _first: int, state: dict[str, torch.Tensor]
    ) -> None:
        by_length(values, placed, *state.values())

    monkeypatch.setattr(gpu, "is_gpu", lambda _device: True)
    monkeypatch.setattr(length_accumulator, "_triton", lambda: by_length)
    monkeypatch.setattr(neuron_accumulator, "_triton", lambda: by_neuron)


def test_the_order_of_streams_leaves_no_access_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    blocking = layers_of_a_batch(device, monkeypatch)
    assert device.errors == []
    assert device.delayed == []
    assert blocking == [True] * LAYERS  # an event that spins takes a processor for each thread


def test_what_a_copy_still_reads_is_kept_by_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    layers_of_a_batch(device, monkeypatch)
    assert len(device.copied) == LAYERS
    assert device.recorded == [(pointer, COPIES) for pointer in device.copied]


@pytest.mark.parametrize(
    ("fault", "streams"),
    [
        ({"no_stream_wait": True}, {(COPIES, MAIN)}),
        ({"no_host_wait": True}, {(HOST, COPIES)}),
        ({"no_stream_wait": True, "no_host_wait": True}, {(COPIES, MAIN), (HOST, COPIES)}),
    ],
    ids=["no-wait-for-the-pass", "no-wait-of-the-host", "neither"],
)
def test_each_wait_that_is_left_out_is_found(
    fault: dict[str, bool], streams: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(**fault)
    try:
        layers_of_a_batch(device, monkeypatch)
    except (AssertionError, CheckError):
        assert "no_host_wait" in fault  # what was stored was not there yet
    found = {(each.current_access.stream, each.previous_access.stream) for each in device.errors}
    assert found == streams

"""What the fault tests share: how much of each fault, and a run that takes a second."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faults.content import content, objects, put
from faults.forks import Forks, forking
from neoscope.text.documents import SAMPLE_FILE
from support.command import BUCKET, FAULTS

Tell = Callable[[str, int, str], None]
NewUrl = Callable[[], str]


def times(some: int, full: int) -> int:
    """How often to do it."""
    return full if FAULTS["full"] else some


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """This test's own source of choices."""
    return random.Random(f"{FAULTS['seed']} {request.node.name}")


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Adds to the table: a fault, how often it was made, and what came of it."""
    properties = request.node.user_properties
    return lambda fault, count, outcome: properties.append(("fault", (fault, count, outcome)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(times(300, 1200)))


@pytest.fixture
def new_url(endpoint: str) -> NewUrl:
    """Makes places in MinIO that nothing else uses."""
    return lambda: f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking(tmp_path_factory.mktemp("printed")) as warm:
        yield warm


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of the sample's paragraphs, in 20 row groups, as data sets on the Hub are."""
    documents = [json.loads(line) for line in SAMPLE_FILE.read_text("utf-8").splitlines()]
    rows = [
        {"id": f"{document['id']}-{number}", "text": paragraph}
        for document in documents
        for number, paragraph in enumerate(document["text"].split("\n"))
        if paragraph
    ]
    path = tmp_path_factory.mktemp("text") / "text.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=-(-len(rows) // 20))
    return path


@pytest.fixture(scope="session")
def arguments(small_model: Path, text: Path) -> list[str]:
    """A run of four batches, but for its place."""
    return [
        *("--model", str(small_model), "--text", str(text)),
        *("--sequences", "8", "--positions", "48", "--batches", "4"),
    ]


class Undisturbed:
    """The same run that nothing happened to: where it lies and what it holds."""

    def __init__(self, forks: Forks, place: str, arguments: list[str]) -> None:
        ended = forks.run("run", place, *arguments)
        assert ended.code == 0, ended.err
        self.place = place
        self.content = content(place)


@pytest.fixture(scope="session")
def undisturbed(
    forks: Forks, arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    place = str(tmp_path_factory.mktemp("undisturbed") / "run")
    found = Undisturbed(forks, place, arguments)
    verified = forks.run("verify", place)
    assert verified.code == 0, verified.out
    return found


@pytest.fixture
def stored(undisturbed: Undisturbed, new_url: NewUrl) -> str:
    """The undisturbed run in MinIO."""
    place = new_url()
    for key, body in objects(undisturbed.place).items():
        put(place, key, body)
    return place

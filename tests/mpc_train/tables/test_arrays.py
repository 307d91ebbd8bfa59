"""Arrays of a declared shape, from every place that they may lie in."""

import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars
import pytest

from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.errors import DataError, JobError
from mpc_train.jobs.data import Array
from mpc_train.jobs.job import Job
from mpc_train.owners.table import load_table
from mpc_train.results.predicting import predict
from mpc_train.tables.source import Source
from tests.mpc_train.results.test_predict import model_in
from tests.support.commands import mpc_train
from tests.support.examples import EXAMPLES
from tests.support.jobs import job_toml, loaded, replaced
from tests.support.modules import write_modules

SHAPE = (2, 3, 4)
ROWS = 6
ARRAY = 'array = { name = "image", shape = [2, 3, 4], range = [0, 255], center = 5, scale = 250 }'
IMAGES = np.random.default_rng(3).integers(0, 256, (ROWS, *SHAPE), np.uint8)
LABELS = np.array([0, 1, 1, 0, 1, 0])

TEXT = job_toml(
    label="ill",
    rows={"ann": ROWS, "bob": ROWS},
    recipients=["ann", "office"],
    data=ARRAY,
    train='epochs = 1\nbatch_size = 8\noptimizer = { name = "sgd", learning_rate = 0.5 }',
)


def job_of(folder: Path, text: str = TEXT) -> Job:
    return loaded(folder, text)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_of(tmp_path)


def with_shape(shape: str, text: str = TEXT) -> str:
    assert "[2, 3, 4]" in text
    return text.replace("[2, 3, 4]", shape)


def check(job: Job, source: Source, images: np.ndarray = IMAGES) -> None:
    table = load_table(source, job, "ann")
    expected = (images.reshape(len(images), -1).astype(float) - 5) / 250
    np.testing.assert_allclose(table.features, expected, atol=1e-15)
    assert table.labels.tolist() == LABELS.tolist()


def refused(job: Job, source: Source) -> str:
    with pytest.raises(DataError) as caught:
        load_table(source, job, "ann")
    message = str(caught.value)
    assert (source.file or "") in message
    return message


def test_a_job_carries_the_array_and_no_list_of_features(job: Job) -> None:
    assert len(job.features) == 24 and job.pipeline.width == 24
    assert [feature.name for feature in job.features][:2] == ["image_0", "image_1"]
    assert {feature.scale for feature in job.features} == {Decimal(250)}
    assert b"image_1" not in job.to_bytes()
    assert job_from_bytes(job.to_bytes()) == job


@pytest.mark.parametrize(
    ("shape", "declared"),
    [
        ((2, 3, 4), "[2, 3, 4]"),
        ((24,), "[2, 3, 4]"),
        ((1, 2, 3, 4), "[2, 3, 4]"),
        ((24,), "[24]"),
        ((6, 4), "[1, 6, 4]"),
        ((6, 4, 1), "[1, 6, 4]"),
    ],
)
def test_npz(tmp_path: Path, shape: tuple[int, ...], declared: str) -> None:
    job, path = job_of(tmp_path, with_shape(declared)), tmp_path / "t.npz"
    np.savez(path, image=IMAGES.reshape(ROWS, *shape), ill=LABELS)
    check(job, Source(str(path)))


@pytest.mark.parametrize("shape", [(4, 3, 2), (2, 4, 3), (12, 2), (3, 4), (25,), ()])
def test_npz_of_another_shape(tmp_path: Path, job: Job, shape: tuple[int, ...]) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, image=np.zeros((ROWS, *shape)), ill=LABELS)
    said = refused(job, Source(str(path)))
    assert "'image'" in said and ("2 × 3 × 4" in said or "is of type" in said)
    np.savez(path, scan=IMAGES, ill=LABELS)
    assert "there is no array 'image'; the arrays are 'scan', 'ill'" in refused(
        job, Source(str(path))
    )


def lists(nested: bool) -> polars.Series:
    values = IMAGES if nested else IMAGES.reshape(ROWS, -1)
    return polars.Series("image", values.tolist())


WRITERS: dict[str, Callable[[polars.DataFrame, Path], Any]] = {
    "t.parquet": lambda frame, path: frame.write_parquet(path),
    "t.arrow": lambda frame, path: frame.write_ipc(path),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["flat", "nested", "array", "array of a shape", "floats"])
def test_list_columns(tmp_path: Path, job: Job, name: str, kind: str) -> None:
    column = lists(kind == "nested")
    if kind == "floats":
        column = column.cast(polars.List(polars.Float32))
    elif kind == "array":
        column = column.cast(polars.Array(polars.UInt8, 24))
    elif kind == "array of a shape":
        column = polars.Series("image", IMAGES)
    path = tmp_path / name
    WRITERS[name](polars.DataFrame({"image": column, "ill": LABELS}), path)
    check(job, Source(str(path)))


def test_list_columns_of_another_shape(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "t.parquet"

    def written(cells: list[Any]) -> str:
        polars.DataFrame({"ill": LABELS, "image": cells}).write_parquet(path)
        return refused(job, Source(str(path)))

    nested = IMAGES.tolist()
    nested[1][1][2] = [1, 2, 3]
    nested[4] = nested[4][:1]
    said = written(nested)
    assert "row 5: column 'image': is not an array of 2 × 3 × 4" in said
    nested[4] = IMAGES[4].tolist()
    assert "row 2: column 'image': is not an array of 2 × 3 × 4" in written(nested)
    flat = IMAGES.reshape(ROWS, -1).tolist()
    assert "row 3" in written([*flat[:2], None, *flat[3:]])
    assert "nested 2 deep" in written([[one] for one in flat])
    assert "do not contain numbers" in written([["a"]] * ROWS)
    assert "is of type Int64" in written([1] * ROWS)


def test_a_value_out_of_range_is_named_by_its_row(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "t.parquet"
    flat = IMAGES.reshape(ROWS, -1).astype(float)
    flat[3, 7] = 256
    polars.DataFrame({"ill": LABELS, "image": flat.tolist()}).write_parquet(path)
    said = refused(job, Source(str(path)))
    assert "row 4: column 'image_7': outside the declared range" in said
    flat[3, 7] = np.nan
    polars.DataFrame({"ill": LABELS, "image": flat.tolist()}).write_parquet(path)
    assert "row 4: column 'image_7'" in refused(job, Source(str(path)))


def table_of_files(folder: Path, names: list[str]) -> Path:
    path = folder / "t.csv"
    lines = [f"{name},{label}" for name, label in zip(names, LABELS, strict=True)]
    path.write_text("\n".join(["image,ill", *lines]))
    return path


@pytest.mark.parametrize("elsewhere", [False, True])
def test_npy_files_named_in_a_csv(tmp_path: Path, job: Job, elsewhere: bool) -> None:
    folder = tmp_path / ("scans" if elsewhere else ".")
    (folder / "sub").mkdir(parents=True)
    names = [f"sub/{row}.npy" for row in range(ROWS)]
    for name, image in zip(names, IMAGES, strict=True):
        np.save(folder / name, image)
    source = Source(str(table_of_files(tmp_path, names)))
    if elsewhere:
        source = Source(source.file, array_folder=str(folder))
    check(job, source)


def test_a_name_to_replace_that_no_column_has(tmp_path: Path, job: Job) -> None:
    names = [f"{row}.npy" for row in range(ROWS)]
    for name, image in zip(names, IMAGES, strict=True):
        np.save(tmp_path / name, image)
    source = Source(str(table_of_files(tmp_path, names)), rename={"scan": "pixels"})
    with pytest.raises(DataError, match=r"line 1: rename\.scan: there is no column of this"):
        check(job, source)


def test_everything_wrong_with_files_is_said_at_once(tmp_path: Path, job: Job) -> None:
    names = ["0.npy", "1.npy", "2.npy", "", "../3.npy", "gone.npy"]
    np.save(tmp_path / "0.npy", IMAGES[0])
    np.save(tmp_path / "1.npy", IMAGES[1][:1])
    np.save(tmp_path / "2.npy", np.array([{"a": 1}]), allow_pickle=True)
    said = refused(job, Source(str(table_of_files(tmp_path, names))))
    assert [line.split(": column")[0].split("t.csv: ")[1] for line in said.split("\n  ")] == [
        "line 3",
        "line 4",
        "line 5",
        "line 6",
        "line 7",
    ]
    for words in (
        "has 1 × 3 × 4, but the job says 2 × 3 × 4",
        "cannot be read as .npy",
        "the cell is empty",
        "the cell is not a path below array_folder",
        "there is no file of this name",
    ):
        assert words in said
    for name in names[1:]:
        assert not name or name not in said.replace(str(tmp_path), "")


def test_files_outside_the_folder_are_not_opened(tmp_path: Path, job: Job) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    np.save(outside / "x.npy", IMAGES[0])
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "link.npy").symlink_to(outside / "x.npy")
    (folder / "a").symlink_to(outside)
    names = [str(outside / "x.npy"), "../outside/x.npy", "link.npy", "a/x.npy", "a/../x.npy", "."]
    path = table_of_files(tmp_path, names)
    said = refused(job, Source(str(path), array_folder=str(folder)))
    assert said.count("column 'image'") == ROWS
    assert said.count("link to outside array_folder") >= 2


def test_a_header_that_claims_much_takes_nothing(tmp_path: Path, job: Job) -> None:
    np.save(tmp_path / "x.npy", IMAGES[0])
    body = (tmp_path / "x.npy").read_bytes()
    claimed = body.replace(b"(2, 3, 4), }", b"(9999999999,)}"[:12])
    (tmp_path / "x.npy").write_bytes(claimed)
    said = refused(job, Source(str(table_of_files(tmp_path, ["x.npy"] * ROWS))))
    assert "cannot be read" in said or "the job says" in said


def test_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = np.random.default_rng(5).integers(0, 256, (ROWS, 3, 5, 4), np.uint8)
    job = job_of(tmp_path, with_shape("[3, 5, 4]"))
    names = [f"{row}.{('png', 'bmp', 'tiff')[row % 3]}" for row in range(ROWS)]
    for name, picture in zip(names, pictures, strict=True):
        image.fromarray(np.moveaxis(picture, 0, -1)).save(tmp_path / name)
    check(job, Source(str(table_of_files(tmp_path, names))), pictures)
    grey = job_of(tmp_path, with_shape("[1, 5, 4]"))
    for name, picture in zip(names, pictures, strict=True):
        image.fromarray(picture[0]).save(tmp_path / name)
    check(grey, Source(str(table_of_files(tmp_path, names))), pictures[:, :1])
    deep = job_of(tmp_path, with_shape("[5, 4]").replace("[0, 255]", "[0, 4000]"))
    fine = np.arange(ROWS * 20, dtype=np.uint16).reshape(ROWS, 5, 4) * 30
    for row, picture in enumerate(fine):
        image.fromarray(picture).save(tmp_path / f"{row}.png")
    check(deep, Source(str(table_of_files(tmp_path, [f"{k}.png" for k in range(ROWS)]))), fine)


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    job = job_of(tmp_path, with_shape("[1, 5, 4]"))
    grey = np.zeros((5, 4), np.uint8)
    image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "turned.png")
    image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    image.fromarray(grey).save(tmp_path / "web.gif")
    image.fromarray(grey).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    (tmp_path / "text.png").write_text("no image")
    names = ["turned.png", "colour.png", "palette.png", "web.gif", "cut.png", "text.png"]
    said = refused(job, Source(str(table_of_files(tmp_path, names)))).split("\n  ")
    assert "has 1 × 4 × 5, but the job says 1 × 5 × 4" in said[0]
    assert "has 3 × 5 × 4" in said[1]
    assert "has a palette" in said[2]
    for line in said[3:]:
        assert "cannot be read as .npy, or as one of PNG, JPEG" in line


def test_images_without_pillow(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"pip install 'mpc-train\[images\]'"):
        load_table(Source(str(table_of_files(tmp_path, ["x.png"] * ROWS))), job, "ann")


def test_small_pieces_give_the_same(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpc_train.tables.readers.arrays.CHUNK_CELLS", 50)
    path = tmp_path / "t.parquet"
    frame = polars.DataFrame({"image": lists(True), "ill": LABELS})
    frame.write_parquet(path)
    check(job, Source(str(path)))
    bad = frame.with_columns(image=polars.Series([*IMAGES.tolist()[:4], [[[1]]], [[[1]]]]))
    bad.write_parquet(path)
    assert "row 5" in refused(job, Source(str(path)))


def test_columns_of_numbers_stand_for_an_array_too(tmp_path: Path, job: Job) -> None:
    flat = IMAGES.reshape(ROWS, -1)
    columns = {f"image_{k}": flat[:, k] for k in range(24)}
    path = tmp_path / "t.csv"
    polars.DataFrame({**columns, "ill": LABELS}).write_csv(path)
    check(job, Source(str(path)))
    polars.DataFrame({"ill": LABELS}).write_csv(path)
    assert "line 1: missing column 'image'" in refused(job, Source(str(path)))
    polars.DataFrame({**columns, "ill": LABELS}).drop("image_5").write_csv(path)
    assert "missing column 'image_5'" in refused(job, Source(str(path)))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[2, 3, 4]", "[]", "data.array.shape"),
        ("[2, 3, 4]", "[2, 0]", "data.array.shape"),
        ("[2, 3, 4]", "[1, 1, 1, 2, 2]", "data.array.shape"),
        ("[2, 3, 4]", "[100000, 100000, 100000]", "data.array.shape"),
        ('name = "image"', 'name = " image"', "data.array"),
        ("[0, 255]", "[255, 0]", "data.array"),
        ("scale = 250", "scale = 0", "data.array"),
        ('label = "ill"', 'label = "image_3"', "data.label"),
        ('label = "ill"', 'label = "image"', "data.array.name"),
        ('label = "ill"', 'label = "ill"\nfeatures = ["age"]', "data.features"),
        ("shape = [2, 3, 4], ", "", "data.array"),
    ],
)
def test_arrays_that_contradict_themselves(tmp_path: Path, old: str, new: str, key: str) -> None:
    with pytest.raises(JobError) as caught:
        job_of(tmp_path, replaced(old, new, TEXT))
    assert f"{key}" in str(caught.value)


def test_an_opened_model_takes_arrays(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    np.savez(tmp_path / "new.npz", image=IMAGES)
    for row, image in enumerate(IMAGES):
        np.save(tmp_path / f"{row}.npy", image)
    found = predict(tmp_path, tmp_path / "new.npz")
    assert found.height == ROWS and found["p(1)"].n_unique() > 3
    path = table_of_files(tmp_path, [f"{row}.npy" for row in range(ROWS)])
    same = predict(tmp_path, path)
    np.testing.assert_allclose(same["p(1)"].to_numpy(), found["p(1)"].to_numpy(), rtol=1e-12)
    frame = polars.DataFrame({"image": lists(False), "nr": range(ROWS)})
    same = predict(tmp_path, frame, ids=["nr"])
    np.testing.assert_allclose(same["p(1)"].to_numpy(), found["p(1)"].to_numpy(), rtol=1e-12)


def test_a_folder_is_needed_where_the_table_is_no_file(tmp_path: Path, job: Job) -> None:
    database = tmp_path / "t.db"
    for row, image in enumerate(IMAGES):
        np.save(tmp_path / f"{row}.npy", image)
    with sqlite3.connect(database) as connection:
        connection.execute("create table t (image text, ill integer)")
        rows = [(f"{row}.npy", int(label)) for row, label in enumerate(LABELS)]
        connection.executemany("insert into t values (?, ?)", rows)
    connection.close()
    source = Source(url=f"sqlite:///{database}", query="select * from t order by image")
    assert "set array_folder" in refused(job, source)
    check(job, msgspec.structs.replace(source, array_folder=str(tmp_path)))
    model_in(tmp_path, job)
    with pytest.raises(DataError, match="set array_folder"):
        predict(tmp_path, polars.DataFrame({"image": ["0.npy"]}))
    path = table_of_files(tmp_path, [f"{row}.npy" for row in range(ROWS)])
    moved = tmp_path / "tables"
    moved.mkdir()
    path = path.rename(moved / "t.csv")
    words = ["predict", tmp_path, path, "--id", "image"]
    shown = mpc_train(*words, "--array-folder", tmp_path)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.splitlines()[1].startswith("1,0.npy,")
    assert mpc_train(*words).exit_code == 4


NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 1))
"""


def test_a_network_takes_the_array_in_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_modules(tmp_path, monkeypatch, array_net=NET)
    module = TEXT.replace('kind = "logistic"', 'kind = "logistic"\nmodule = "array_net:net"')
    job = job_of(tmp_path, module)
    assert job.model.input_shape == SHAPE and job.graph.input_shape == SHAPE
    table = tmp_path / "t.npz"
    np.savez(table, image=IMAGES, ill=LABELS)
    check(job, Source(str(table)))
    with pytest.raises(JobError, match=r"model\.module|data\.array\.shape"):
        job_of(tmp_path, with_shape("[3, 3, 4]", module))
    asked = module.replace("array_net:net", 'array_net:net"\ninput_shape = [2, 3, 5]\n#')
    with pytest.raises(JobError, match=r"24|30"):
        job_of(tmp_path, asked)


def test_the_example_takes_arrays() -> None:
    """And what it trains on is what its features were: 64 numbers of 0 to 16, divided by 16."""
    job = load_job(EXAMPLES / "lenet" / "job.toml")
    array = job.data.array
    assert isinstance(array, Array) and array.shape == job.model.input_shape == (1, 8, 8)
    assert {(f.center, f.scale) for f in job.features} == {(Decimal(0), Decimal(16))}
    assert {f.range for f in job.features} == {(Decimal(0), Decimal(16))}
    assert job.pipeline.width == 64


def test_an_error_has_an_end(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpc_train.tables.readers.arrays.MAX_SHOWN", 3)
    said = refused(job, Source(str(table_of_files(tmp_path, ["gone.npy"] * ROWS))))
    assert said.count("there is no file") == 3 and said.endswith("and possibly more")
    for row in range(3):
        np.save(tmp_path / f"{row}.npy", IMAGES[row])
    names = ["0.npy", "1.npy", "2.npy", "a.npy", "b.npy", "c.npy"]
    said = refused(job, Source(str(table_of_files(tmp_path, names))))
    assert said.count("there is no file") == 3 and "more" not in said

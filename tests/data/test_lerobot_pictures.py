"""Pictures of LeRobot folders: every step gets its own frame, and what is no such film is refused with a message."""

import io
import struct
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
av = pytest.importorskip("av", reason="PyAV is not installed")

from lerobot_folder import (  # noqa: E402
    EPISODES,
    edit_feature,
    edit_info,
    edit_table,
    frame,
    told,
    with_column,
    write_film,
    write_films,
    write_lerobot,
)

from daps_robot.data import lerobot_pictures  # noqa: E402
from daps_robot.data.cameras import resized  # noqa: E402
from daps_robot.data.demos import read_demos  # noqa: E402
from daps_robot.errors import ConfigError, DataError  # noqa: E402

LENGTHS = (12, 9, 14, 11, 8)
TOP = "observation.images.top"
FILM = f"videos/{TOP}/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def folder(tmp_path):
    return write_films(write_lerobot(tmp_path / "pushing", LENGTHS), LENGTHS)


def says(demos, camera="top"):
    """Episode and step that each picture says."""
    return [[told(picture) for picture in demo.images[camera]] for demo in demos.demos]


EXPECTED = [[(i, step) for step in range(length)] for i, length in enumerate(LENGTHS)]


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {"bf": "3", "g": "50"}), ("libx264", {"g": "2"}), ("libsvtav1", {"g": "2", "crf": "30"})]
)
def test_every_step_has_its_own_frame(tmp_path, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    size = (64, 96) if codec == "libsvtav1" else (48, 64)
    folder = write_films(write_lerobot(tmp_path / "pushing", LENGTHS), LENGTHS, size=size, codec=codec, **options)
    demos = read_demos(folder, cameras=("top",))
    assert says(demos) == EXPECTED
    assert (demos.seen, demos.picture_size, demos.cameras) == (("top",), size, {"top": size})


def joined(first, second, path):
    """Two films, one after the other, packets copied: as lerobot appends an episode to a film."""
    names = path.with_suffix(".ffconcat")
    names.write_text(f"ffconcat version 1.0\nfile '{first}'\nfile '{second}'\n")
    with av.open(str(names), format="concat", options={"safe": "0"}) as old, av.open(str(path), "w") as new:
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source, opaque=True)
        for packet in old.demux(source):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return path


def test_films_that_lerobot_has_appended_to_are_read(tmp_path):
    """Each time the durations are rounded, so that the times drift from the frames': here by a fiftieth of a frame."""
    if int(av.__version__.split(".")[0]) < 18:
        pytest.skip("a PyAV that joins such films for this test (18) is not there")
    folder = write_films(write_lerobot(tmp_path / "pushing", LENGTHS), LENGTHS, per_film=1)
    parts = [folder / FILM.replace("0.mp4", f"{i}.mp4") for i in range(len(LENGTHS))]
    ends, film = [], parts[0]
    for i, part in enumerate(parts):
        with av.open(str(part)) as each:
            ends.append(float(each.streams.video[0].duration * each.streams.video[0].time_base) + (ends[-1] if ends else 0))
        film = joined(film, part, tmp_path / f"{i}.mp4") if i else film
    film.replace(folder / FILM)
    for name, values in {"file_index": [0] * 5, "from_timestamp": [0.0, *ends[:-1]], "to_timestamp": ends}.items():
        edit_table(folder, EPISODES, with_column(f"videos/{TOP}/{name}", pa.array(values)))
    assert says(read_demos(folder, cameras=("top",))) == EXPECTED


def test_cameras_have_the_names_that_robots_give_them(folder, capsys):
    write_films(folder, LENGTHS, per_film=5, camera="observation.image")
    plain = read_demos(folder)
    assert plain.obs_keys == ("observation.environment_state", "observation.state") and plain.seen == ()
    assert plain.cameras == {"image": (48, 64), "top": (48, 64)}
    demos = read_demos(folder, cameras=("image", TOP))
    assert demos.seen == ("image", "top") and says(demos, "image") == says(demos) == EXPECTED
    assert demos.obs_keys == ("observation.state",)
    assert "read: observation.state; left out: observation.environment_state." in capsys.readouterr().out
    assert read_demos(folder, ("observation.environment_state",), cameras=("top",)).obs_keys == ("observation.environment_state",)
    refused(folder, "no pictures of side. It has pictures of: image, top", cameras=("side",))
    refused(folder, "asked for twice", cameras=("top", TOP))
    edit_feature(folder, "observation.top", dtype="video", shape=[3, 24, 32])
    assert read_demos(folder).cameras == {"image": (48, 64), "observation.top": (24, 32), "top": (48, 64)}


def test_pictures_are_scaled_where_that_is_asked_for(folder):
    whole, scaled = read_demos(folder, cameras=("top",)), read_demos(folder, cameras=("top",), picture_size=(24, 40))
    assert scaled.picture_size == (24, 40) and scaled.cameras == {"top": (48, 64)}
    assert np.array_equal(scaled.demos[1].images["top"][3], resized(whole.demos[1].images["top"][3], (24, 40)))
    halved = resized(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), (2, 2))
    assert halved[0, 0, 0] in (7, 8)  # the mean of 0, 3, 12, 15
    with pytest.raises(ConfigError, match="0 × 40"):
        read_demos(folder, cameras=("top",), picture_size=(0, 40))
    with pytest.raises(ConfigError, match="of no camera: name some with --cameras"):
        read_demos(folder, picture_size=(24, 40))
    edit_feature(folder, TOP, shape=[480, 640, 3])
    refused(folder, "480 × 640; say .* such as --picture-size 96 128")
    refused(folder, "frames of 48 × 64, where meta/info.json says 480 × 640", picture_size=(24, 32))


def test_the_checksum_covers_the_films_that_are_read(folder):
    plain, seeing = read_demos(folder).sha256, read_demos(folder, cameras=("top",)).sha256
    names = [DATA, DATA.replace("0.p", "1.p"), EPISODES, "meta/info.json", *(FILM.replace("0.m", f"{i}.m") for i in range(3))]
    lines = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    assert seeing == subprocess.run(["sha256sum"], input=lines, capture_output=True).stdout.split()[0].decode() != plain


def test_without_pyav_the_extra_is_named_and_numbers_are_read(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(read_demos(folder)) == 5
    with pytest.raises(ConfigError, match=r"pip install 'daps-robot\[lerobot-video\]'"):
        read_demos(folder, cameras=("top",))


def test_pictures_beyond_memory_are_refused_before_any_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(lerobot_pictures, "film_frames", None)
    memory = psutil.virtual_memory()._replace(available=54 * 48 * 64 * 3 - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    refused(folder, "54 pictures of top take .* .--picture-size")


def test_of_a_faster_film_the_nearest_frames_are_taken(folder):
    """Three frames a step, of which the first is meant."""
    frames = [frame(0, step, (48, 64)) for step in range(12)] + [frame(1, step, (48, 64)) for step in range(9)]
    black = np.zeros((48, 64, 3), np.uint8)
    film = [pixels for each in frames for pixels in (each, black, black)]
    write_film(folder / FILM, film, rate=90, g="3")
    assert says(read_demos(folder, cameras=("top",))) == EXPECTED


def pngs(lengths, change=lambda data: data, kind="PNG"):
    def stored(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        return {"bytes": change(file.getvalue()), "path": "frame.png"}

    return pa.array([stored(frame(i, step, (30, 40))) for i, length in lengths for step in range(length)])


def with_pictures(folder, **how):
    """The camera "wrist", its pictures in the two data files (of four episodes and one)."""
    wrist = "observation.images.wrist"
    edit_feature(folder, wrist, dtype="image", shape=[3, 30, 40])
    for number, part in enumerate((slice(0, 4), slice(4, 5))):
        rows = pngs(list(enumerate(LENGTHS))[part], **how)
        edit_table(
            folder, f"data/chunk-000/file-00{number}.parquet", lambda t, r=rows: t.append_column("observation.images.wrist", r)
        )
    return folder


def test_pictures_in_the_data_files_are_read_exactly_and_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    folder = with_pictures(write_lerobot(tmp_path / "pushing", LENGTHS))
    demos = read_demos(folder, cameras=("wrist",))
    assert demos.picture_size == (30, 40)
    for i, demo in enumerate(demos.demos):
        assert np.array_equal(demo.images["wrist"], np.stack([frame(i, step, (30, 40)) for step in range(len(demo))]))


def test_pictures_in_the_data_files_that_are_none(tmp_path):
    damaged = with_pictures(write_lerobot(tmp_path / "damaged", LENGTHS), change=lambda data: data[:60])
    refused(damaged, "'observation.images.wrist' in row 0 cannot be decoded", cameras=("wrist",))
    elsewhere = with_pictures(write_lerobot(tmp_path / "elsewhere", LENGTHS), change=lambda data: None)
    refused(elsewhere, "is not one column of pictures|has no bytes", cameras=("wrist",))
    edit_feature(elsewhere, "observation.images.wrist", shape=[60, 40, 3])
    other = with_pictures(write_lerobot(tmp_path / "other", LENGTHS))
    edit_feature(other, "observation.images.wrist", shape=[60, 40, 3])
    refused(other, r"row 0 is 30 × 40 \(RGB\), where 60 × 40", cameras=("wrist",))
    numbers = write_lerobot(tmp_path / "numbers", LENGTHS)
    edit_feature(numbers, "observation.state", dtype="image", shape=[30, 40, 3])
    refused(numbers, "'observation.state' is not one column of pictures", ["observation.environment_state"], ("state",))


def place(name, values):
    return lambda folder: edit_table(folder, EPISODES, with_column(f"videos/{TOP}/{name}", pa.array(values)))


def film(count=21, **how):
    return lambda folder: write_film(folder / FILM, [frame(0, step % 12, (48, 64)) for step in range(count)], **how)


def patched(box, start, value):
    """A number in a header of the first film replaced."""

    def change(folder):
        content = bytearray((folder / FILM).read_bytes())
        place = content.index(box) + start
        content[place : place + 4] = struct.pack(">I", value)
        (folder / FILM).write_bytes(content)

    return change


STARTS = [0, 0.4, 0, 14 / 30, 0]
BAD_FILMS = {
    "a missing film": (lambda folder: (folder / FILM).unlink(), "file-000.mp4 does not exist, but meta/episodes names it"),
    "no film": (lambda folder: (folder / FILM).write_bytes(b"hello" * 999), "file-000.mp4 is damaged"),
    "an empty film": (lambda folder: (folder / FILM).write_bytes(b""), "file-000.mp4 is damaged"),
    "a film cut off": (lambda folder: (folder / FILM).write_bytes((folder / FILM).read_bytes()[:900]), "file-000.mp4 is damaged"),
    "a film that ends early": (film(20), r"no frame at 0.667 s \(demo_1, step 8\), the nearest is at 0.633 s"),
    "a gap": (film(20, times=[*range(5), *range(6, 21)]), r"no frame at 0.167 s \(demo_0, step 5\), the nearest"),
    "a film half a frame late": (film(rate=300, times=[6 + 10 * i for i in range(21)]), "no frame at 0.000 s .demo_0, step 0"),
    "another codec": (film(codec="mpeg4"), "encoded as mpeg4; av1, h264"),
    "in fragments": (film(container={"movflags": "frag_keyframe+empty_moov"}), "film in fragments"),
    "millions of frames in its headers": (patched(b"stsz", 12, 50_000_000), "50000000 frames or edits are stated in"),
    "frames of another size": (
        lambda folder: write_film(folder / FILM, [np.zeros((64, 64, 3), np.uint8)] * 21),
        "frames of 64 × 64, where meta/info.json says 48 × 64",
    ),
    "negative times": (
        place("from_timestamp", [-0.4, *STARTS[1:]]),
        "demo_0: its 12 steps at 30 a second do not lie between -0.4",
    ),
    "times that are none": (place("from_timestamp", [np.nan, *STARTS[1:]]), "demo_0: its 12 steps .* between nan"),
    "times beyond all films": (place("to_timestamp", [1e300] * 5), "do not lie between"),
    "less film than steps": (place("to_timestamp", [0.3, 0.7, 1, 1, 1]), "demo_0: its 12 steps .* between 0.000 and 0.300 s"),
    "episodes that overlap": (place("from_timestamp", [0, 0.3, 0, 14 / 30, 0]), "file-000.mp4: demo_1 begins before demo_0 ends"),
    "negative files": (place("file_index", [-1] * 5), "negative numbers of films"),
    "times as text": (place("from_timestamp", ["0"] * 5), "holds string instead of numbers"),
    "times that are missing": (place("from_timestamp", [None, *STARTS[1:]]), "null"),
    "no places": (
        lambda folder: edit_table(folder, EPISODES, lambda t: t.select(range(5))),
        "no column 'videos/observation.images",
    ),
    "no template": (lambda folder: edit_info(folder, video_path=None), "video_path is None; a path inside the folder"),
    "a template that leaves": (
        lambda folder: edit_info(folder, video_path="../{video_key}/{chunk_index}/{file_index}.mp4"),
        "video_path is ../.*; a path inside the folder",
    ),
    "a template of attributes": (
        lambda folder: edit_info(folder, video_path="{video_key.__class__}/{chunk_index}/{file_index}.mp4"),
        "video_path is .*; a path inside the folder",
    ),
    "padding without end": (
        lambda folder: edit_info(folder, video_path="{video_key:>99999999}/{chunk_index}/{file_index}.mp4"),
        "video_path is .*; a path inside the folder",
    ),
    "grey pictures": (lambda folder: edit_feature(folder, TOP, shape=[48, 64, 1]), "no pictures of top"),
    "absurd pictures": (lambda folder: edit_feature(folder, TOP, shape=[10**9, 64, 3]), "no pictures of top"),
}


@pytest.mark.parametrize("case", BAD_FILMS)
def test_unusable_films_are_refused(folder, case):
    change, message = BAD_FILMS[case]
    change(folder)
    refused(folder, message)


@pytest.mark.parametrize("seed", range(6))
def test_damage_anywhere_in_a_film_is_refused_or_harmless(folder, seed):
    rng = np.random.default_rng(seed)
    content = bytearray((folder / FILM).read_bytes())
    start = int(rng.integers(len(content) - 60))
    content[start : start + 60] = rng.bytes(60)
    (folder / FILM).write_bytes(bytes(content))
    try:
        demos = read_demos(folder, cameras=("top",))
    except DataError as error:
        assert str(folder) in str(error)
    else:
        assert [demo.images["top"].shape for demo in demos.demos] == [(length, 48, 64, 3) for length in LENGTHS]


def refused(folder, message, obs_keys=None, cameras=("top",), picture_size=None):
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        read_demos(folder, obs_keys, cameras=cameras, picture_size=picture_size)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 700

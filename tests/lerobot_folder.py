"""A LeRobotDataset v3 as its own writer leaves it, small, and ways to spoil it."""

import json

import numpy as np

DIMS = {"action": 3, "observation.environment_state": 1, "observation.state": 4}
LENGTHS = (20, 21, 22, 23, 24, 25, 20, 21, 22, 23)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
CAMERA = {"dtype": "video", "shape": [96, 96, 3], "names": ["height", "width", "channel"]}


def episode(i, length):
    """Actions that lead the state by a step, as a robot's do."""
    rng = np.random.default_rng(i)
    state = np.cumsum(rng.normal(size=(length + 1, 4)), 0).astype(np.float32)
    return {
        "action": state[1:, :3],
        "observation.environment_state": rng.normal(size=(length, 1)).astype(np.float32),
        "observation.state": state[:-1],
    }


def write_lerobot(folder, lengths=LENGTHS, per_file=4, fixed=True):
    """Writes `per_file` episodes a data file; with `fixed`, rows as lists of a fixed size, as newer files have them."""
    import pyarrow as pa

    features = {key: {"dtype": "float32", "shape": [dim], "names": None} for key, dim in DIMS.items()}
    features |= {"observation.images.top": CAMERA, "timestamp": {"dtype": "float32", "shape": [1], "names": None}}
    features |= {key: {"dtype": "int64", "shape": [1], "names": None} for key in ("frame_index", "episode_index", "index")}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "so101",
        "fps": 30,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": 1000,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    start = 0
    episodes = []
    for file, first in enumerate(range(0, len(lengths), per_file)):
        tables = []
        for i, length in enumerate(lengths[first : first + per_file], first):
            columns = {key: column(values, fixed) for key, values in episode(i, length).items()}
            columns |= {
                "timestamp": pa.array(np.arange(length, dtype=np.float32) / 30),
                "frame_index": pa.array(np.arange(length)),
                "episode_index": pa.array(np.full(length, i)),
                "index": pa.array(np.arange(start, start + length)),
            }
            tables.append(pa.table(columns))
            place = {"data/chunk_index": 0, "data/file_index": file, "dataset_from_index": start}
            start += length
            episodes.append({"episode_index": i, "tasks": ["push"], "length": length, **place, "dataset_to_index": start})
        save(folder / f"data/chunk-000/file-{file:03d}.parquet", pa.concat_tables(tables))
    save(folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(episodes))
    save(folder / "meta/tasks.parquet", pa.table({"task_index": [0], "__index_level_0__": ["push"]}))
    return folder


def column(values, fixed=True):
    """A row of one number is stored as a number, others as lists."""
    import pyarrow as pa

    if values.shape[1] == 1:
        return pa.array(values[:, 0])
    flat = pa.array(values.ravel())
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]), flat)


def save(path, table):
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def edit_info(folder, **changes):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_feature(folder, key, **changes):
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"][key] = info["features"].get(key, {}) | changes
    edit_info(folder, features=info["features"])


def edit_table(folder, name, change):
    """Replaces a parquet file by what `change` makes of its table."""
    import pyarrow.parquet as parquet

    path = folder / name
    save(path, change(parquet.ParquetFile(path).read()))


def with_column(key, values):
    """A change of `edit_table`: a column replaced."""
    return lambda table: table.set_column(table.schema.get_field_index(key), key, values(table) if callable(values) else values)


def frame(i, step, size):
    """Says by two shades of grey which it is; (height width 3)."""
    picture = np.full((*size, 3), 12 * i + 20, np.uint8)
    picture[:, size[1] // 2 :] = 8 * step + 20
    return picture


def told(picture):
    """Episode and step that a frame says."""
    middle = picture.shape[1] // 2
    shades = picture[:, : middle - 4].mean(), picture[:, middle + 4 :].mean()
    return round((shades[0] - 20) / 12), round((shades[1] - 20) / 8)


def write_film(path, frames, codec="libx264", rate=30, times=None, **options):
    """Frames at times of 1/rate, or at these multiples of it."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options.pop("container", {})) as film:
        stream = film.add_stream(codec, rate, options=options)
        stream.pix_fmt, (stream.height, stream.width) = "yuv420p", frames[0].shape[:2]
        for time, pixels in zip(times or range(len(frames)), frames, strict=True):
            each = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            each.pts = time
            film.mux(stream.encode(each))
        film.mux(stream.encode())


def write_films(folder, lengths, per_film=2, camera="observation.images.top", size=(48, 64), **how):
    """Films of a camera, `per_film` episodes in each, and where meta/episodes says that they are."""
    import pyarrow as pa

    places = {"chunk_index": [], "file_index": [], "from_timestamp": [], "to_timestamp": []}
    for number, first in enumerate(range(0, len(lengths), per_film)):
        frames = []
        for i, length in enumerate(lengths[first : first + per_film], first):
            limits = len(frames) / 30, (len(frames) + length) / 30
            frames += [frame(i, step, size) for step in range(length)]
            for name, value in zip(places, (0, number, *limits), strict=True):
                places[name].append(value)
        write_film(folder / "videos" / camera / f"chunk-000/file-{number:03d}.mp4", frames, **how)
    for name, values in places.items():
        key = f"videos/{camera}/{name}"
        edit_table(folder, EPISODES, lambda table, key=key, values=values: table.append_column(key, pa.array(values)))
    edit_feature(folder, camera, dtype="video", shape=[*size, 3])
    return folder

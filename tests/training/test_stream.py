"""The endless stream of batches: permutations, the same wherever it is taken up and whoever loads it."""

import os
import signal

import pytest
import torch
from toy_objective import ToyData, train

from daps_robot.errors import DapsRobotError, DataError
from daps_robot.training.stream import Shuffled, batches, dead_worker, step_seed


class Numbers:
    """Gathers the indices themselves."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return self.examples

    def gather(self, index):
        return index


class Noisy(Numbers):
    def augmented(self, index, keys):
        return torch.stack([index, keys], -1)


class Faulty(Numbers):
    def __init__(self, examples, fault):
        super().__init__(examples)
        self.fault = fault

    def gather(self, index):
        if self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("picture 7 is cut off")


def first(n, *arguments, **options):
    stream = batches(*arguments, **options)
    return [next(stream) for _ in range(n)]


@pytest.mark.parametrize("examples, batch", [(37, 8), (8, 8), (5, 13), (1, 3), (100, 7)])
def test_batches_are_a_stream_of_permutations(examples, batch):
    stream = torch.cat(first(4 * examples, Numbers(examples), batch, 3))
    assert len(stream) == 4 * examples * batch
    epochs = stream[: len(stream) // examples * examples].view(-1, examples)
    assert (epochs.sort(-1).values == torch.arange(examples)).all()
    if examples > 20:
        assert len({tuple(e) for e in epochs.tolist()}) == len(epochs)
        assert not torch.equal(first(1, Numbers(examples), batch, 4)[0], first(1, Numbers(examples), batch, 3)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_the_same_from_any_step_and_with_any_number_of_workers(workers):
    whole = first(9, Noisy(37), 8, 3)
    again = first(4, Noisy(37), 8, 3, first_step=5, workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], again, strict=True))
    shares = [first(9, Noisy(37), 8, 3, share=share, workers=workers) for share in (slice(0, 4), slice(4, 8))]
    assert all(torch.equal(a, torch.cat(parts)) for a, parts in zip(whole, zip(*shares, strict=True), strict=True))


def test_keys_of_augmentation_differ_between_epochs_and_seeds():
    rows = torch.cat([*first(10, Noisy(5), 5, 3), *first(10, Noisy(5), 5, 4)])
    assert len(rows[:, 1].unique()) == len(rows)


def test_the_trainer_gathers_that_stream(tmp_path):
    data = ToyData()
    train(tmp_path, data=data, seed=3)
    order = Shuffled(data, 3)
    assert data.gathered == [order.index(range(8 * step, 8 * step + 8)).tolist() for step in range(20)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_readers_error_arrives_as_it_is(workers):
    with pytest.raises(DataError, match=r"^picture 7 is cut off$"):
        first(1, Faulty(9, "raises"), 4, 0, workers=workers)


def test_a_dead_worker_is_known_behind_what_it_broke():
    """As in torch.save, whose archive cannot be closed where the signal of the death came while it was written."""
    with pytest.raises(RuntimeError) as caught:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        finally:
            raise RuntimeError("unexpected pos 131328 vs 131220")
    assert "(pid 7) is killed" in str(dead_worker(caught.value, 2))
    assert dead_worker(RuntimeError("unexpected pos"), 2) is None


def test_a_dead_worker_ends_the_run():
    with pytest.raises(DapsRobotError, match="process that loads data died"):
        first(1, Faulty(9, "dies"), 4, 0, workers=1)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), BrokenPipeError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch(error, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data", broken)
    with pytest.raises(DapsRobotError, match="process that loads data died"):
        first(1, Numbers(9), 4, 0, workers=1)


def test_step_seeds_differ():
    assert len({step_seed(seed, step) for seed in range(10) for step in range(100)}) == 1000

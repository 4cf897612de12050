"""What a program asks of its process, and sizes that are computed before anything is allocated."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from numpygpt import GPTConfig, GPTModel, InputError
from numpygpt import process as module
from numpygpt.decoding.beams import beam_search
from numpygpt.model.config import LARGEST_SIZE
from numpygpt.model.sizes import check_memory, decoding_bytes, num_parameters
from numpygpt.process import machine_memory, number_of_threads
from parity_tests.command import python

CONFIG = GPTConfig(vocab_size=13, context_length=7, emb_dim=6, n_heads=2, n_layers=3, drop_rate=0.0, qkv_bias=False)


# Threads


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_threads_are_those_of_blas_whatever_sets_them(monkeypatch, variable):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "1")
    done = python("-c", "from numpygpt.process import number_of_threads; print(number_of_threads())")
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_threads_follow_a_limit_that_is_set_later():
    with threadpool_limits(2, user_api="blas"):
        assert number_of_threads() == 2
        with threadpool_limits(1, user_api="blas"):
            assert number_of_threads() == 1
        assert number_of_threads() == 2


def test_another_libraries_blas_does_not_count(monkeypatch):
    class Library:
        def __init__(self, filepath, num_threads):
            self.filepath, self.num_threads = filepath, num_threads

    class Controller:
        def __init__(self, *libraries):
            self.lib_controllers = list(libraries)

        def select(self, **kind):
            return self

    def in_the_process(*libraries):
        monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: Controller(*libraries))

    numpys, scipys = Library("/numpy.libs/libopenblas.so", 3), Library("/scipy.libs/libopenblas.so", 1)
    monkeypatch.setattr(module, "_blas_of_numpy", module._blas_of_numpy.__wrapped__)  # without its cache
    in_the_process(numpys, scipys)
    assert number_of_threads() == 3
    in_the_process(scipys)
    assert number_of_threads() == 1
    in_the_process()
    assert number_of_threads() >= 1


# Memory


def test_the_machine_has_memory_and_a_container_may_have_less(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CONTAINER_LIMIT", tmp_path / "memory.max")
    machine = machine_memory()
    assert machine > 2**28
    for contents, expected in (("max\n", machine), (f"{2**20}\n", 2**20), (f"{2**62}\n", machine)):
        module.CONTAINER_LIMIT.write_text(contents)
        assert machine_memory() == expected


def test_what_does_not_fit_is_refused_in_gibibytes(monkeypatch):
    monkeypatch.setattr("numpygpt.model.sizes.machine_memory", lambda: 3 * 2**30)
    check_memory(3 * 2**30, "a model")
    expected = r"a model needs at least 3\.1 GiB of memory, and this machine has 3\.0 GiB: make it smaller"
    with pytest.raises(InputError, match=expected):
        check_memory(3 * 2**30 + 1, "a model")
    with pytest.raises(InputError, match=r"needs at least 9(,\d{3})+\.\d GiB"):
        check_memory(10**400, "a model")
    monkeypatch.setattr("numpygpt.model.sizes.machine_memory", lambda: None)
    check_memory(10**400, "a model")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sequences", [1, 5])
def test_beams_take_the_bytes_that_are_told(dtype, sequences):
    model = GPTModel(CONFIG, dtype=dtype)
    logits, past = model.decode(np.zeros((sequences, 2), int))
    caches = sum(cache.buffer.keys_values.nbytes for cache in past)
    weights = num_parameters(CONFIG) * np.dtype(dtype).itemsize
    sort = sum(logits.astype(kind).nbytes for kind in (np.float64, np.float64, np.int64))
    assert decoding_bytes(CONFIG, sequences, dtype) == weights + caches + logits.nbytes + sort


def test_a_beam_search_holds_at_least_what_is_told():
    config, beams = replace(CONFIG, vocab_size=20_000), 50
    model = GPTModel(config)
    tracemalloc.start()
    beam_search(model, [[1]], 2, config.context_length, beams)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    told = decoding_bytes(config, beams) - 4 * num_parameters(config)
    assert told <= peak < 2 * told


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"])
def test_a_size_has_a_largest_value(name):
    sizes = {**CONFIG.to_dict(), "n_heads": 1}
    assert getattr(GPTConfig.of({**sizes, "emb_dim": LARGEST_SIZE, name: LARGEST_SIZE}), name) == LARGEST_SIZE
    with pytest.raises(InputError, match=f"{name} is {LARGEST_SIZE + 1}; expected at most {LARGEST_SIZE}"):
        GPTConfig.of({**sizes, name: LARGEST_SIZE + 1})

import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest

from baselines.base import Method, MethodUnavailableError, timed
from baselines.memory import Shelf


class Fake:
    """Returns its input; knows how many callers it has at once."""

    def __init__(self):
        self.inside = 0
        self.most = 0
        self.guard = threading.Lock()
        self.pause = threading.Event()

    def restore(self, lq, *, seed=0):
        with self.guard:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.pause.wait(0.002)
        with self.guard:
            self.inside -= 1
        return timed("fake", seed, lambda: lq)


class Loader:
    """Makes methods and writes down what is loaded, and how many loads run at once."""

    def __init__(self):
        self.loads = []
        self.alive = weakref.WeakValueDictionary()
        self.inside = 0
        self.overlapped = False

    def method(self, name, size, **options):
        return Method(name, name.title(), "other", 1, self.load(name), memory_bytes=size, **options)

    def load(self, name):
        def load(device):
            self.inside += 1
            self.overlapped |= self.inside > 1
            threading.Event().wait(0.002)
            self.inside -= 1
            self.loads.append(name)
            self.alive[name] = fake = Fake()
            return fake

        return load


@pytest.fixture
def loader():
    return Loader()


def touch(shelf, *methods):
    for method in methods:
        with shelf.use(method):
            pass


def test_a_method_is_loaded_on_first_use_and_then_kept(loader):
    shelf = Shelf(10)
    method = loader.method("a", 4)
    assert (loader.loads, shelf.loaded) == ([], ())
    touch(shelf, method, method, method)
    assert (loader.loads, shelf.loaded) == (["a"], ("a",))


def test_the_one_unused_longest_makes_room(loader):
    a, b, c = (loader.method(name, 4) for name in "abc")
    shelf = Shelf(10)
    touch(shelf, a, b, a, c)
    assert shelf.loaded == ("a", "c")
    touch(shelf, b)
    assert shelf.loaded == ("c", "b")


def test_a_large_one_evicts_as_many_as_it_must_and_no_more(loader):
    small = [loader.method(name, 3) for name in "abc"]
    shelf = Shelf(10)
    touch(shelf, *small, loader.method("large", 6))
    assert shelf.loaded == ("c", "large")


def test_what_fits_exactly_evicts_nobody(loader):
    shelf = Shelf(10)
    touch(shelf, loader.method("a", 4), loader.method("b", 6))
    assert shelf.loaded == ("a", "b")


def test_one_larger_than_the_budget_is_refused_and_evicts_nobody(loader):
    shelf = Shelf(2**30)
    touch(shelf, loader.method("a", 1))
    with pytest.raises(MethodUnavailableError, match=r"takes 3\.0 GiB .* may take 1\.0 GiB"):
        touch(shelf, loader.method("huge", 3 * 2**30))
    assert shelf.loaded == ("a",)


def test_what_was_evicted_is_freed(loader):
    a, b = loader.method("a", 6), loader.method("b", 6)
    shelf = Shelf(10)
    touch(shelf, a)
    assert "a" in loader.alive
    touch(shelf, b)
    gc.collect()
    assert set(loader.alive) == {"b"}


def test_unloading_frees_what_nobody_uses(loader):
    method = loader.method("a", 4)
    shelf = Shelf(10)
    with shelf.use(method):
        assert not shelf.unload("a")
    assert shelf.unload("a")
    gc.collect()
    assert not loader.alive
    assert not shelf.unload("a")


def test_a_failed_load_leaves_nothing_behind_and_may_be_tried_again(loader):
    def load(device):
        raise MethodUnavailableError("The weights are not there.")

    broken = replace(loader.method("a", 4), load=load)
    shelf = Shelf(10)
    for _ in range(2):
        with pytest.raises(MethodUnavailableError, match="not there"):
            touch(shelf, broken)
    assert shelf.loaded == ()
    touch(shelf, loader.method("b", 10))


def test_an_error_while_in_use_gives_the_method_back(loader):
    a, b = loader.method("a", 6), loader.method("b", 6)
    shelf = Shelf(10)
    with pytest.raises(RuntimeError, match="boom"), shelf.use(a):
        raise RuntimeError("boom")
    touch(shelf, b)
    assert shelf.loaded == ("b",)


def test_what_is_in_use_is_waited_for_instead_of_evicted(loader):
    a, b = loader.method("a", 6), loader.method("b", 6)
    shelf = Shelf(10)
    got_b = threading.Event()

    def use_b():
        with shelf.use(b):
            got_b.set()

    with shelf.use(a):
        waiting = threading.Thread(target=use_b)
        waiting.start()
        assert not got_b.wait(0.1)
        assert shelf.loaded == ("a",)
    assert got_b.wait(5)
    waiting.join(5)
    assert shelf.loaded == ("b",)


def test_two_different_methods_of_one_name_are_refused(loader):
    shelf = Shelf(10)
    touch(shelf, loader.method("a", 1))
    with pytest.raises(ValueError, match="two different methods are called 'a'"):
        touch(shelf, loader.method("a", 2))


def test_a_thread_uses_one_method_at_a_time(loader):
    a, b = loader.method("a", 1), loader.method("b", 1)
    shelf = Shelf(10)
    with shelf.use(a), pytest.raises(AssertionError, match="one method at a time"), shelf.use(b):
        pass


@pytest.mark.parametrize("concurrent", [False, True])
def test_many_threads_never_load_twice_at_once_nor_share_what_is_not_shareable(
    loader, photo, concurrent
):
    methods = [loader.method(name, 4, concurrent=concurrent) for name in "abcd"]
    shelf = Shelf(10)
    most, over, errors = {}, [], []
    pixels = np.asarray(photo)

    def work(thread):
        rng = np.random.default_rng(thread)
        try:
            for _ in range(5):
                method = methods[rng.integers(len(methods))]
                with shelf.use(method) as restorer:
                    over.append(4 * len(shelf.loaded) > 10)
                    assert (np.asarray(restorer.restore(photo).image) == pixels).all()
                    most[method.name] = max(most.get(method.name, 0), restorer.most)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert not loader.overlapped
    assert not any(over)
    assert (max(most.values()) > 1) == concurrent

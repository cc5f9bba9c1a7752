"""Leases on text vectors, without a daemon: the clock is a number that the tests move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pmm_cached.leases import Leases
from pmm_cached.status import EmbeddingStatus
from pmm_shm import limits
from pmm_shm.wire.results import LeaseResult
from tests.support.profiles import examples

MODEL = "model"


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


class Bench:
    """Leases with a table and a clock to turn by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.stored: set[tuple[str, bytes]] = set()
        self.status = EmbeddingStatus()
        self.leases = Leases(lambda *key: key in self.stored, self.status, lambda: self.now)

    def lease(self, *numbers: int, wait_s: float = 0.0, may_wait: bool = True, model: str = MODEL) -> list[Any]:
        """A list that gets the answer, now or later."""
        answers: list[Any] = []
        self.leases.acquire(model, [key(number) for number in numbers], wait_s, answers.append, may_wait=may_wait)
        return answers

    def token(self, number: int) -> int:
        """A lease that must be granted."""
        (answer,) = self.lease(number)
        ((_, token),) = answer.granted
        return int(token)

    def put(self, number: int, token: int, *, succeeds: bool = True) -> bool:
        accepted = self.leases.accept(MODEL, [(key(number), token)])
        if accepted:
            if succeeds:
                self.stored.add((MODEL, key(number)))
            self.leases.finish(MODEL, [key(number)])
        return bool(accepted)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.leases.advance()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_free_held_and_ready_keys(bench: Bench) -> None:
    bench.stored.add((MODEL, key(2)))
    token = bench.token(1)
    (answer,) = bench.lease(0, 1, 2)
    assert (answer.ready, answer.held) == ([2], [1])
    ((index, other),) = answer.granted
    assert index == 0
    assert other > token
    assert bench.status.leases_held == 2


def test_models_do_not_share_keys(bench: Bench) -> None:
    bench.token(1)
    (answer,) = bench.lease(1, model="another")
    assert len(answer.granted) == 1


def test_tokens_of_two_daemons_do_not_fit_each_other() -> None:
    first, second = Bench(), Bench()
    token = first.token(1)
    second.token(1)
    assert not second.put(1, token)
    assert second.status.late_puts == 1


def test_who_waits_is_answered_when_it_is_stored(bench: Bench) -> None:
    token = bench.token(1)
    waiting = bench.lease(1, wait_s=10)
    assert waiting == []
    assert bench.put(1, token)
    assert waiting == [LeaseResult([], [0], [], [])]
    assert (bench.status.leases_held, bench.status.lease_waits, bench.leases.waiting) == (0, 1, 0)


@pytest.mark.parametrize("how", ["released", "given up"])
def test_all_who_wait_are_told_that_the_holder_failed(bench: Bench, how: str) -> None:
    token, _ = bench.token(1), bench.token(2)
    first, second, third = bench.lease(1, 2, wait_s=10), bench.lease(1, wait_s=10), bench.lease(2, wait_s=10)
    if how == "released":
        bench.leases.release([token])
    else:
        bench.leases.accept(MODEL, [(key(1), token)])
        bench.leases.release_accepted(MODEL, [key(1)])
    assert (first, second, third) == ([LeaseResult([], [], [1], [0])], [LeaseResult([], [], [], [0])], [])
    assert (bench.status.leases_held, bench.leases.waiting) == (1, 1)
    assert len(bench.lease(1)[0].granted) == 1


@pytest.mark.parametrize("how", ["expired", "not stored"])
def test_one_of_those_who_wait_goes_on(bench: Bench, how: str) -> None:
    token = bench.token(1)
    first, second = bench.lease(1, wait_s=10), bench.lease(1, wait_s=10)
    if how == "expired":
        bench.sleep(limits.LEASE_S)
    else:
        bench.put(1, token, succeeds=False)
    assert len(first[0].granted) == 1
    assert second == []
    assert bench.status.leases_expired == (how == "expired")


def test_waiting_ends(bench: Bench) -> None:
    bench.token(1)
    waiting = bench.lease(1, wait_s=1.5)
    assert bench.leases.next_deadline() == bench.now + 1.5
    bench.sleep(1.4)
    assert waiting == []
    bench.sleep(0.1)
    assert waiting == [LeaseResult([], [], [0], [])]


def test_a_renewed_lease_lives_on_but_not_for_ever(bench: Bench) -> None:
    token = bench.token(1)
    born = bench.now
    while bench.now + 1.5 < born + limits.LEASE_LIFE_S:
        bench.sleep(1.5)
        assert bench.leases.renew([token]) == 1
    bench.now = born + limits.LEASE_LIFE_S - 0.1
    assert bench.leases.renew([token, token + 1]) == 1
    bench.sleep(0.1)
    assert bench.leases.renew([token]) == 0
    assert not bench.put(1, token)


def test_what_is_being_stored_does_not_expire(bench: Bench) -> None:
    token = bench.token(1)
    assert bench.leases.accept(MODEL, [(key(1), token)]) == [0]
    bench.sleep(limits.LEASE_LIFE_S * 2)
    assert bench.lease(1) == [LeaseResult([], [], [0], [])]
    assert bench.leases.accept(MODEL, [(key(1), token)]) == []
    bench.leases.release([token])
    assert bench.status.leases_held == 1
    bench.leases.finish(MODEL, [key(1)])
    assert (bench.status.leases_held, bench.status.leases_expired) == (0, 0)


def test_a_late_put_changes_nothing(bench: Bench) -> None:
    late = bench.token(1)
    bench.sleep(limits.LEASE_S)
    token = bench.token(1)
    assert not bench.put(1, late)
    assert bench.status.late_puts == 1
    assert bench.put(1, token)


def test_the_token_of_another_key_or_model_is_refused(bench: Bench) -> None:
    one, two = bench.token(1), bench.token(2)
    assert bench.leases.accept(MODEL, [(key(1), two), (key(2), one)]) == []
    assert bench.leases.accept("another", [(key(1), one)]) == []
    assert bench.status.late_puts == 3
    assert bench.leases.renew([one, two]) == 2


def test_bounds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASES_MAX", 3)
    bench.token(1)
    assert bench.lease(2, 3, 4) == [None]
    assert bench.status.leases_held == 1
    assert len(bench.lease(2, 3)[0].granted) == 2
    assert bench.lease(1, wait_s=1, may_wait=False) == [None]
    waiting = bench.lease(1, 2, wait_s=1)
    bench.leases.close()
    assert waiting == [LeaseResult([], [], [0, 1], [])]


def test_nothing_is_left_behind(bench: Bench) -> None:
    for number in range(1_000):
        token = bench.token(number)
        bench.lease(number, wait_s=5)
        if number % 3 == 0:
            bench.leases.release([token])
        elif number % 3 == 1:
            bench.leases.renew([token])
        else:
            bench.put(number, token)
    bench.sleep(limits.LEASE_LIFE_S)
    bench.sleep(limits.LEASE_LIFE_S)
    state = vars(bench.leases)
    assert [name for name, value in state.items() if isinstance(value, dict) and value] == []
    assert bench.leases.next_deadline() is None


# Against a model: the same rules, written down as slowly and plainly as can be.


@dataclass
class Held:
    number: int
    token: int
    granted_at: float
    renewed_at: float
    is_storing: bool = False

    def is_over(self, now: float) -> bool:
        life, rest = self.granted_at + limits.LEASE_LIFE_S, self.renewed_at + limits.LEASE_S
        return not self.is_storing and min(life, rest) <= now


@dataclass
class Waiting:
    numbers: list[int]
    deadline: float
    real: list[Any]
    expected: list[Any] = field(default_factory=list)


class LeaseMachine(RuleBasedStateMachine):
    numbers = st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True)
    ranks = st.lists(st.integers(0, 9), max_size=3, unique=True)

    @initialize()
    def begin(self) -> None:
        self.bench = Bench()
        self.held: dict[int, Held] = {}
        self.stored: set[int] = set()
        self.tokens: list[int] = []
        self.waiting: list[Waiting] = []
        self.expired = self.late = 0

    def answer_of(self, numbers: Sequence[int], real: list[Any]) -> Any:
        """What the model answers; tokens it takes from the real answer, and checks."""
        free = [index for index, one in enumerate(numbers) if one not in self.held and one not in self.stored]
        granted = []
        for index in free:
            token = dict(real[0].granted)[index] if real else None
            assert token is not None
            assert not self.tokens or token > self.tokens[-1]
            self.tokens.append(token)
            self.held[numbers[index]] = Held(numbers[index], token, self.bench.now, self.bench.now)
            granted.append((index, token))
        taken = [index for index, one in enumerate(numbers) if one in self.held and index not in free]
        ready = [index for index, one in enumerate(numbers) if one not in self.held]
        return LeaseResult(granted, ready, taken, [])

    def settle(self) -> None:
        now = self.bench.now
        for held in [held for held in self.held.values() if held.is_over(now)]:
            del self.held[held.number]
            self.expired += 1
        left = []
        for one in self.waiting:
            if all(number in self.held for number in one.numbers):
                if one.deadline > now:
                    left.append(one)
                else:
                    one.expected.append(LeaseResult([], [], list(range(len(one.numbers))), []))
            else:
                one.expected.append(self.answer_of(one.numbers, one.real))
            assert one.real == one.expected
        self.waiting = left

    @rule(numbers=numbers, wait_s=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def lease(self, numbers: list[int], wait_s: float) -> None:
        real = self.bench.lease(*numbers, wait_s=wait_s)
        self.settle()
        if wait_s > 0 and all(number in self.held for number in numbers):
            assert real == []
            self.waiting.append(Waiting(numbers, self.bench.now + wait_s, real))
        else:
            assert real == [self.answer_of(numbers, real)]

    @rule(ranks=ranks)
    def renew(self, ranks: list[int]) -> None:
        tokens = [self.tokens[-rank] for rank in ranks if 0 < rank <= len(self.tokens)]
        count = self.bench.leases.renew(tokens)
        self.settle()
        alive = [held for held in self.held.values() if held.token in tokens and not held.is_storing]
        for held in alive:
            held.renewed_at = self.bench.now
        assert count == len(alive)

    @rule(ranks=ranks)
    def release(self, ranks: list[int]) -> None:
        tokens = [self.tokens[-rank] for rank in ranks if 0 < rank <= len(self.tokens)]
        self.bench.leases.release(tokens)
        self.fail([held.number for held in self.held.values() if held.token in tokens and not held.is_storing])

    def fail(self, ended: list[int]) -> None:
        left = []
        for one in self.waiting:
            failed = [index for index, number in enumerate(one.numbers) if number in ended]
            if failed:
                others = [index for index in range(len(one.numbers)) if index not in failed]
                one.expected.append(LeaseResult([], [], others, failed))
                assert one.real == one.expected
            else:
                left.append(one)
        self.waiting = left
        self.settle_after(ended)

    def settle_after(self, ended: list[int]) -> None:
        # What expires goes first, and may have answered somebody already.
        over = {held.number for held in self.held.values() if held.is_over(self.bench.now)}
        assert not over, "the clock is moved by one rule only, which settles"
        for number in ended:
            del self.held[number]
        self.settle()

    @rule(number=st.integers(0, 4), rank=st.integers(1, 6))
    def accept(self, number: int, rank: int) -> None:
        if rank > len(self.tokens):
            return
        token = self.tokens[-rank]
        accepted = self.bench.leases.accept(MODEL, [(key(number), token)])
        held = self.held.get(number)
        fits = held is not None and held.token == token and not held.is_storing
        assert accepted == ([0] if fits else [])
        if held is not None and fits:
            held.is_storing = True
        self.late += not fits

    @rule(number=st.integers(0, 4), succeeds=st.booleans())
    def finish(self, number: int, succeeds: bool) -> None:
        held = self.held.get(number)
        if held is None or not held.is_storing:
            return
        if succeeds:
            self.bench.stored.add((MODEL, key(number)))
            self.stored.add(number)
        self.bench.leases.finish(MODEL, [key(number)])
        self.settle_after([number])

    @rule(number=st.integers(0, 4))
    def give_up(self, number: int) -> None:
        held = self.held.get(number)
        if held is None or not held.is_storing:
            return
        self.bench.leases.release_accepted(MODEL, [key(number)])
        self.fail([number])

    @rule(number=st.integers(0, 4))
    def evict(self, number: int) -> None:
        self.bench.stored.discard((MODEL, key(number)))
        self.stored.discard(number)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, 5.0, limits.LEASE_LIFE_S]))
    def sleep(self, seconds: float) -> None:
        self.bench.sleep(seconds)
        self.settle()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "bench"):
            return
        status = self.bench.status
        assert (status.leases_held, status.leases_granted) == (len(self.held), len(self.tokens))
        assert (status.leases_expired, status.late_puts) == (self.expired, self.late)
        assert self.bench.leases.waiting == len(self.waiting)
        instants = [one.deadline for one in self.waiting]
        for held in self.held.values():
            if not held.is_storing:
                instants += [held.renewed_at + limits.LEASE_S, held.granted_at + limits.LEASE_LIFE_S]
        assert self.bench.leases.next_deadline() == min(instants, default=None)


TestLeasesAgainstAModel = LeaseMachine.TestCase
TestLeasesAgainstAModel.settings = settings(max_examples=examples(60), stateful_step_count=40)

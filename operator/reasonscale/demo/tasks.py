"""The micro reasoner's two skills: their questions, chains and right answers. Standard library alone.

`sum` is column addition, whose chain grows with the digits of the question. `collatz` counts the steps of n -> n/2 or
3n+1 until 1, whose chain can't be told from the question: 96 takes 12 steps, 97 takes 118.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_DIGITS = 8
MAX_N = 999
HELD_OUT_COLLATZ = 100
HELD_OUT_SUM_MODULUS = 17  # sums with (a * 31 + b) % 17 == 0 are never trained on


@dataclass(frozen=True, slots=True)
class Task:
    """A question with its right answer and the chain that leads there."""

    skill: str
    question: str
    chain: str
    answer: str


def sum_task(a: int, b: int) -> Task:
    """Return the column addition of two numbers: a line for each column, last digit first."""
    left, right, carry, done, lines = str(a), str(b), 0, "", []
    while left or right:
        x, y = int(left[-1:] or 0), int(right[-1:] or 0)
        total = x + y + carry
        lines.append(f"{left}+{right} c{carry} r{done}: {x}+{y}+{carry}={total:02d}")
        left, right, carry, done = left[:-1], right[:-1], total // 10, str(total % 10) + done
    lines.append(f"+ c{carry} r{done}")
    return Task("sum", f"{a}+{b}", "\n".join(lines), ("1" if carry else "") + done)


def collatz_task(n: int) -> Task:
    """Return the count of Collatz steps from n to 1: a line `step:value` each, the value's digits reversed."""
    step, value, lines = 0, n, []
    while True:
        lines.append(f"{step}:{str(value)[::-1]}")
        if value == 1:
            return Task("collatz", f"collatz {n}", "\n".join(lines), str(step))
        value, step = value // 2 if value % 2 == 0 else 3 * value + 1, step + 1


def collatz_split() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers trained on and those held out; the split is fixed."""
    numbers = list(range(1, MAX_N + 1))
    random.Random(1).shuffle(numbers)
    return tuple(numbers[HELD_OUT_COLLATZ:]), tuple(numbers[:HELD_OUT_COLLATZ])


def sum_is_held_out(a: int, b: int) -> bool:
    """Tell whether the sum was kept from training."""
    return (a * 31 + b) % HELD_OUT_SUM_MODULUS == 0


def random_sum(rng: random.Random, digits: int, *, held_out: bool) -> Task:
    """Draw a sum whose larger number has so many digits (1..MAX_DIGITS)."""
    while True:
        other = digits if rng.random() < 0.7 else rng.randint(1, digits)
        a, b = (rng.randrange(10 ** (d - 1) if d > 1 else 0, 10**d) for d in (digits, other))
        if rng.random() < 0.5:
            a, b = b, a
        if digits < 2 or sum_is_held_out(a, b) == held_out:
            return sum_task(a, b)


def answer_to(question: str) -> str:
    """Return the right answer to a question of either skill; ValueError for any other."""
    if question.startswith("collatz "):
        return collatz_task(int(question.removeprefix("collatz "))).answer
    left, plus, right = question.partition("+")
    if not plus:
        raise ValueError(f"{question!r} is neither a sum such as 347+85 nor such as collatz 27")
    return str(int(left) + int(right))

"""The root of a falling function: known ones, at the ends, and in few evaluations."""

import math

import pytest

from unskew.debias.temperature import find_decreasing_root


def counted(value, slope):
    calls = []

    def function(x):
        calls.append(x)
        return value(x), slope(x)

    return function, calls


# name -> value, slope, root, how near
FUNCTIONS = {
    "line": (lambda x: 0.3 - x, lambda x: -1.0, 0.3, 1e-12),
    "exponential": (lambda x: math.exp(-3 * x) - 0.1, lambda x: -3 * math.exp(-3 * x), math.log(10) / 3, 1e-11),
    "steep step": (lambda x: -math.tanh(40 * (x - 0.7)), lambda x: -40 / math.cosh(40 * (x - 0.7)) ** 2, 0.7, 1e-11),
    "flat cubic": (lambda x: -((x - 0.4) ** 3), lambda x: -3 * (x - 0.4) ** 2, 0.4, 1e-5),
    "no slope": (lambda x: 0.25 - x**2 if x > 0 else 0.25, lambda x: -2 * x if x > 0 else 0.0, 0.5, 1e-11),
    "a wrong slope": (lambda x: 0.6 - x, lambda x: -0.01, 0.6, 1e-5),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("start", [-4.0, 0.0, 0.5, 4.0])
def test_a_known_root_from_anywhere(name, start):
    value, slope, expected, near = FUNCTIONS[name]
    function, calls = counted(value, slope)
    root, found = find_decreasing_root(function, -4.0, 4.0, start)
    assert found and len(calls) < 60
    assert abs(root - expected) < near


def test_a_smooth_function_takes_few_evaluations():
    function, calls = counted(*FUNCTIONS["exponential"][:2])
    find_decreasing_root(function, -4.0, 4.0, 0.0)
    assert len(calls) <= 7


@pytest.mark.parametrize(("level", "end"), [(5.0, 1.0), (-5.0, -1.0)])
def test_without_a_root_it_is_the_nearer_end(level, end):
    function, _ = counted(lambda x: level - x, lambda x: -1.0)
    assert find_decreasing_root(function, -1.0, 1.0, 0.2) == (end, False)
    function, _ = counted(lambda x: level, lambda x: 0.0)
    assert find_decreasing_root(function, -1.0, 1.0, 0.2) == (end, False)

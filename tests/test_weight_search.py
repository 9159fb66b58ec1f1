import pytest

from gpc.errors import InputError
from gpc.weight_search import Grid, Outcome, simplex


def test_the_simplex_has_the_papers_eleven_points_and_sixty_six_for_three():
    assert simplex(2) == [((10 - i) / 10, i / 10) for i in range(11)]
    three = simplex(3)
    assert len(three) == len(set(three)) == 66
    assert all(sum(w) == pytest.approx(1) and min(w) >= 0 for w in three)
    assert len(simplex(4)) == 286


@pytest.mark.parametrize("step", [0.3, 0.0, -0.1, 2.0])
def test_a_step_that_does_not_divide_one_is_refused(step):
    with pytest.raises(InputError, match="does not divide 1"):
        simplex(2, step)


def test_the_grid_asks_everything_once_and_finds_the_best():
    grid = Grid(2, range(4), 0.5)
    asked = grid.ask()
    assert sorted(asked) == [(c, s) for c in range(3) for s in range(4)]
    grid.tell({(c, s): Outcome(s < (1, 3, 3)[c], (0.2, 0.5, 0.6)[c]) for c, s in asked})
    assert grid.ask() == []
    assert grid.best() == 2  # as many successes as candidate 1, a higher score


def test_after_an_interruption_only_the_rest_is_asked():
    grid = Grid(2, range(4), 0.5)
    grid.tell({(1, 2): Outcome(True, 1.0)})
    assert (1, 2) not in grid.ask()
    assert len(grid.ask()) == 11

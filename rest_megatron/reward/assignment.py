"""The best one-to-one assignment (Kuhn 1955, Munkres 1957), by shortest augmenting paths."""

import numpy as np


def best_assignment(profit: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column), each row and column used at most once, with the largest total profit.

    profit: [R, C], finite. min(R, C) pairs, by row. O(min(R, C)^2 max(R, C)), exact whatever the order of the rows.
    """
    profit = np.asarray(profit, np.float64)
    if profit.shape[0] > profit.shape[1]:
        return sorted((row, column) for column, row in best_assignment(profit.T))
    slack = -profit  # cost less the prices of row and column: 0 where assigned, never negative in an assigned row
    owner = [-1] * profit.shape[1]  # the row each column is assigned to
    for row in range(profit.shape[0]):
        _assign(row, slack, owner)
    return sorted((row, column) for column, row in enumerate(owner) if row != -1)


def _assign(start: int, slack: np.ndarray, owner: list[int]) -> None:
    """Give `start` a column, in place: Dijkstra from it to the nearest free column, then new prices for both sides.

    The loop runs up to R times for each row, so its arrays are made once and every statement in it counts.
    """
    columns = slack.shape[1]
    distance, through, nearer = np.full(columns, np.inf), np.empty(columns), np.empty(columns, bool)
    wall = np.zeros(columns)  # infinite where a column is done
    before = np.empty(columns, np.intp)  # the row from which a column is nearest
    done, rows, reached = [], [start], [0.0]
    while True:
        np.add(slack[rows[-1]], wall, out=through)
        through += reached[-1]
        np.less(through, distance, out=nearer)
        np.copyto(distance, through, where=nearer)
        np.copyto(before, rows[-1], where=nearer)
        column = int(distance.argmin())
        nearest = float(distance[column])
        if owner[column] == -1:
            break
        distance[column] = wall[column] = np.inf
        done.append(column)
        rows.append(owner[column])
        reached.append(nearest)
    change = nearest - np.array(reached)
    slack[rows] -= change[:, None]
    slack[:, done] += change[1:]
    while (row := int(before[column])) != start:  # hand each column on the path to the row before it
        left = owner.index(row)
        owner[column], column = row, left
    owner[column] = start

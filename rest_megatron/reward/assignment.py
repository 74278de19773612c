"""The best one-to-one assignment (Kuhn 1955, Munkres 1957), by shortest augmenting paths."""

import numpy as np


def best_assignment(profit: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column), each row and column used at most once, with the largest total profit.

    profit: [R, C], finite. min(R, C) pairs, by row. O(min(R, C)^2 max(R, C)), exact whatever the order of the rows.
    """
    profit = np.asarray(profit, np.float64)
    if profit.shape[0] > profit.shape[1]:
        return sorted((row, column) for column, row in best_assignment(profit.T))
    rows, columns = profit.shape
    cost = -profit
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)  # the row each column is assigned to
    for row in range(rows):
        # Dijkstra over columns with reduced costs >= 0, from `row` to the nearest free column.
        distance, previous = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, bool)
        at_row, at_column, reached = row, -1, 0.0
        while True:
            through = reached + cost[at_row] - row_price[at_row] - column_price
            nearer = ~done & (through < distance)
            distance[nearer], previous[nearer] = through[nearer], at_column
            at_column = int(np.argmin(np.where(done, np.inf, distance)))
            reached = distance[at_column]
            if owner[at_column] == -1:
                break
            done[at_column] = True
            at_row = owner[at_column]
        row_price[row] += reached
        row_price[owner[done]] += reached - distance[done]
        column_price[done] -= reached - distance[done]
        while at_column != -1:  # hand each column on the path to the row before it
            before = int(previous[at_column])
            owner[at_column] = row if before == -1 else owner[before]
            at_column = before
    return sorted((int(owner[column]), column) for column in range(columns) if owner[column] != -1)

"""A second model of the certificate, written apart from `agreement.py` and less strict: each honest client masked for one of three
sets, and an attack opens *fewer* inputs than all honest survivors. Prints the smallest such set that the solver finds."""

import sys
import time

from ortools.sat.python import cp_model


def solve(n, k, t, a_w, n_adv, n_min, limit=120, bound=True, own_secret=True, told_sets=3):
    half = k // 2
    clients, told = range(n), range(told_sets)
    complete = k >= n - 1
    near = {
        u: [v for v in clients if v != u] if complete else [(u + d) % n for d in range(-half, half + 1) if d]
        for u in clients
    }
    model = cp_model.CpModel()

    def var():
        return model.new_bool_var("")

    colludes = [var() for _ in clients]
    # The first told set is the certified U1.
    u1 = [[var() for _ in clients] for _ in told]
    masked_for = [[var() for _ in told] for _ in clients]
    u2, reveals, knows_b, knows_m, opened = ([var() for _ in clients] for _ in range(5))
    model.add(sum(colludes) <= n_adv)
    model.add(sum(u2) >= n_min)
    for c in told:
        model.add(sum(u1[c]) >= n_min)
    if not complete:
        for place in clients:
            model.add(sum(u2[(place + j) % n] for j in range(half)) >= a_w + 1)
    for u in clients:
        model.add_exactly_one(masked_for[u])
        model.add_implication(u2[u], u1[0][u])
        model.add_implication(reveals[u], u2[u])
        model.add_implication(reveals[u], ~colludes[u])
        if bound:
            model.add_implication(reveals[u], masked_for[u][0])
        model.add(sum(u2[v] for v in near[u]) >= t).only_enforce_if(reveals[u])
        model.add_implication(opened[u], knows_b[u])
        model.add_implication(opened[u], ~colludes[u])
        for c in told:
            both = var()
            model.add_implication(both, opened[u])
            model.add_implication(both, masked_for[u][c])
            model.add_bool_or([~opened[u], ~masked_for[u][c], both])
            model.add(sum(u1[c][v] for v in near[u]) >= t).only_enforce_if(both)
            model.add_implication(both, u1[c][u])
        shares_of_b, shares_of_m = [], []
        for v in near[u]:
            for shares, conditions in ((shares_of_b, [u2[u]]), (shares_of_m, [~u2[u], u1[0][u]])):
                revealed, held = var(), var()
                for condition in [reveals[v], *conditions]:
                    model.add_implication(revealed, condition)
                model.add_bool_or([revealed, colludes[v]]).only_enforce_if(held)
                shares.append(held)
        enough = var()
        model.add(sum(shares_of_b) >= t).only_enforce_if(enough)
        model.add_bool_or([enough, *([reveals[u]] if own_secret else [])]).only_enforce_if(knows_b[u])
        model.add(sum(shares_of_m) >= t).only_enforce_if(knows_m[u])
        model.add_bool_or([~colludes[u], ~knows_m[u]])
    for u in clients:
        for v in near[u]:
            for c in told:
                cancels = var()
                model.add_implication(cancels, opened[v])
                model.add_implication(cancels, u1[c][u])
                if bound:
                    model.add_implication(cancels, masked_for[v][c])
                known = [cancels, knows_m[v], colludes[v]]
                model.add_bool_or([~opened[u], ~masked_for[u][c], ~u1[c][v], *known])
    model.add(opened[0] == 1)
    honest = [var() for _ in clients]
    for u in clients:
        model.add_bool_and(u2[u], ~colludes[u]).only_enforce_if(honest[u])
        model.add_bool_or([~u2[u], colludes[u], honest[u]])
    model.add(sum(opened) <= sum(honest) - 1)

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit
    solver.parameters.num_workers = 2
    started = time.time()
    status = solver.solve(model)
    verdict = solver.status_name(status)
    print({"n": n, "k": k, "t": t, "a_w": a_w, "bound": bound}, verdict, f"{time.time() - started:.1f} s", flush=True)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        value = solver.value
        marks = ("C" if value(colludes[u]) else "X" if value(opened[u]) else "s" if value(u2[u]) else "." for u in clients)
        print("   ", "".join(marks), f"opens {sum(map(value, opened))} of {sum(map(value, honest))} honest survivors")
    return verdict


def main() -> int:
    """The rules hold for a small sparse graph and for one of twenty; without H(U1) in the masks there is a cut."""
    sound = [(12, 6, 4, 1, 1, 6), (20, 12, 7, 1, 1, 10)]
    verdicts = [solve(*sizes) == "INFEASIBLE" for sizes in sound]
    verdicts.append(solve(28, 8, 5, 1, 1, 14, bound=False) in ("FEASIBLE", "OPTIMAL"))
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())

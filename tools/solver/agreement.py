"""Sections 5, 6 and 9 of docs/protocol.md as a constraint model: can a coordinator open anything but the one sum?

The solver plays the coordinator. It chooses colluders, what each honest client is told of U1, the certified pair (U1, U2), and to whom
it shows the certificate. It succeeds when an *opened class* is not exactly all honest members of U2: a set of honest uploads, masked for
one U1, whose masks all fall. INFEASIBLE is a proof that there is no such choice for these sizes; FEASIBLE is an attack, and is printed.

Not in the model: that a cohort has one certificate only (the committee; `certificates=2` shows what happens if not), and that a device's
record binds it to one cohort. `certificate.py` is a second model, written by somebody else.
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass, fields, replace

from ortools.sat.python import cp_model


@dataclass(frozen=True)
class Case:
    """Sizes, and the rules that can be switched off."""

    n: int
    k: int
    t: int
    a_w: int
    n_adv: int
    n_min: int
    # H(U1) is in the seeds of masks, and a device reveals under a certificate for its own U1 only.
    bound: bool = True
    # A client reveals its own b_u.
    own_secret: bool = True
    # A device masks once in a round.
    mask_once: bool = True
    # Each window of k/2 places holds more than a_w members of U2.
    windows: bool = True
    # Certified pairs of the cohort.
    certificates: int = 1
    # Neighbours in U1 that a device needs to mask; t if absent.
    t_u1: int | None = None
    # Different sets of sharers that clients are told.
    told_sets: int = 3
    # Colluders among the neighbours of one client (A), and in one window, where they are fewer than n_adv.
    most_near: int | None = None
    most_in_window: int | None = None
    # Seconds for the solver.
    limit: float = 60


def solve(case: Case, smallest: bool = False) -> str:
    """Looks for an attack; with `smallest`, for one that opens as few inputs as possible. Gives the solver's verdict."""
    n, k, half = case.n, case.k, case.k // 2
    complete = k >= n - 1
    clients, told, pairs = range(n), range(case.told_sets), range(case.certificates)
    near = {
        u: [v for v in clients if v != u] if complete else [(u + d) % n for d in range(-half, half + 1) if d]
        for u in clients
    }
    model = cp_model.CpModel()

    def var(name: str = ""):
        return model.new_bool_var(name)

    def both(*literals):
        """A variable that implies all of these."""
        it = var()
        for literal in literals:
            model.add_implication(it, literal)
        return it

    def either(literals):
        """A variable that implies one of these."""
        it = var()
        model.add_bool_or(literals).only_enforce_if(it)
        return it

    colludes = [var() for _ in clients]
    model.add(sum(colludes) <= case.n_adv)
    for u in clients:
        if case.most_near is not None:
            model.add(sum(colludes[v] for v in near[u]) <= case.most_near)
        if case.most_in_window is not None:
            model.add(sum(colludes[(u + j) % n] for j in range(half)) <= case.most_in_window)
    # Sets that are told as U1; the first ones are certified, each with a U2.
    u1 = [[var() for _ in clients] for _ in told]
    u2 = [[var() for _ in clients] for _ in pairs]
    masked = [[var() for _ in told] for _ in clients]
    reveals = [[var() for _ in clients] for _ in pairs]
    opened = [[var() for _ in clients] for _ in told]
    knows_b = [var() for _ in clients]
    knows_m = [var() for _ in clients]

    for i in pairs:
        model.add(sum(u2[i]) >= case.n_min)
        for u in clients:
            model.add_implication(u2[i][u], u1[i][u])
        if not complete and case.windows:
            for place in clients:
                model.add(sum(u2[i][(place + j) % n] for j in range(half)) >= case.a_w + 1)
    for c in told:
        model.add(sum(u1[c]) >= case.n_min)

    for u in clients:
        # What a device does.
        if case.mask_once:
            model.add(sum(masked[u]) <= 1)
        model.add(sum(reveals[i][u] for i in pairs) <= 1)
        for c in told:
            model.add(sum(u1[c][v] for v in near[u]) >= (case.t_u1 or case.t)).only_enforce_if(masked[u][c])
            model.add_implication(masked[u][c], u1[c][u])
        for i in pairs:
            model.add_implication(reveals[i][u], u2[i][u])
            model.add_implication(reveals[i][u], ~colludes[u])
            if case.bound:
                model.add_implication(reveals[i][u], masked[u][i])
            else:
                model.add_bool_or(masked[u]).only_enforce_if(reveals[i][u])
            model.add(sum(u2[i][v] for v in near[u]) >= case.t).only_enforce_if(reveals[i][u])
        # What the coordinator has of its secrets: shares of holders that revealed, and of colluders.
        shares_of_b, shares_of_m = [], []
        for v in near[u]:
            of_b = [both(reveals[i][v], u2[i][u]) for i in pairs]
            of_m = [both(reveals[i][v], ~u2[i][u], u1[i][u]) for i in pairs]
            shares_of_b.append(either([*of_b, colludes[v]]))
            shares_of_m.append(either([*of_m, colludes[v]]))
        enough = var()
        model.add(sum(shares_of_b) >= case.t).only_enforce_if(enough)
        own = [reveals[i][u] for i in pairs] if case.own_secret else []
        model.add_bool_or([enough, *own]).only_enforce_if(knows_b[u])
        model.add(sum(shares_of_m) >= case.t).only_enforce_if(knows_m[u])
        # An opened input was masked, its own mask is known, and each pair's mask is known or cancels out.
        for c in told:
            for needed in (masked[u][c], knows_b[u], ~colludes[u]):
                model.add_implication(opened[c][u], needed)
            for v in near[u]:
                same = [c] if case.bound else told
                cancels = [both(opened[other][v], u1[other][u]) for other in same]
                known = [knows_m[u], knows_m[v], colludes[v]]
                model.add_bool_or([~opened[c][u], ~u1[c][v], *known, *cancels])

    # The one sum: all honest members of the (first) certified U2.
    one_sum = [var() for _ in clients]
    for u in clients:
        model.add_bool_and(u2[0][u], ~colludes[u]).only_enforce_if(one_sum[u])
        model.add_bool_or([~u2[0][u], colludes[u], one_sum[u]])
    total = sum(opened[c][u] for c in told for u in clients)
    model.add_bool_or([opened[c][u] for c in told for u in clients])
    if case.bound and case.mask_once:
        differs = []
        for u in clients:
            it = var()
            model.add(opened[0][u] != one_sum[u]).only_enforce_if(it)
            differs.append(it)
        first = either([opened[0][u] for u in clients])
        other_sum = both(first, either(differs))
        model.add_bool_or([other_sum, *(opened[c][u] for c in told[1:] for u in clients)])
    else:
        model.add(total <= sum(one_sum) - 1)
    if smallest:
        model.minimize(total)

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = case.limit
    solver.parameters.num_workers = 2
    started = time.time()
    status = solver.solve(model)
    verdict = solver.status_name(status)
    given = {name: value for name, value in asdict(case).items() if value != DEFAULTS.get(name)}
    print(given, verdict, f"{time.time() - started:.1f} s", flush=True)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):

        def line(name, members, mark):
            print(f"    {name:10}", "".join(mark if solver.value(it) else "." for it in members))

        line("colluders", colludes, "C")
        for c in told:
            line(f"told {c}", u1[c], "1")
            line("  masked", [masked[u][c] for u in clients], "u")
            line("  opened", opened[c], "X")
        for i in pairs:
            line(f"U2 {i}", u2[i], "1")
            line("  reveals", reveals[i], "r")
        line("b known", knows_b, "b")
        line("m known", knows_m, "m")
    return verdict


DEFAULTS = {it.name: it.default for it in fields(Case)}
SPARSE = Case(n=14, k=8, t=5, a_w=1, n_adv=1, n_min=5)
COMPLETE = Case(n=14, k=13, t=8, a_w=1, n_adv=1, n_min=8)
# More colluders in the cohort than in any neighbourhood or window, as from about 500 clients on.
MANY = Case(n=24, k=8, t=6, a_w=2, n_adv=5, n_min=6, most_near=3, most_in_window=2)

# What the rules are worth: name, case, whether there is an attack.
RUNS = [
    ("all rules, sparse", SPARSE, False),
    ("all rules, complete", COMPLETE, False),
    ("all rules, k/t/a_w = 24: 8/6/2", Case(n=24, k=8, t=6, a_w=2, n_adv=2, n_min=8), False),
    ("all rules, more colluders in all than near one client", MANY, False),
    ("without the own secret", replace(SPARSE, own_secret=False), False),
    ("without windows, A = n_adv", replace(SPARSE, windows=False), False),
    ("a device masks twice, sparse", replace(SPARSE, mask_once=False), True),
    ("a device masks twice, complete", replace(COMPLETE, mask_once=False), True),
    ("no H(U1) in masks", replace(SPARSE, bound=False), True),
    ("two certificates, sparse", replace(SPARSE, certificates=2, n_min=8), True),
    ("two certificates, complete", replace(COMPLETE, certificates=2), True),
    ("2t = k + A, sparse", replace(SPARSE, t=4), True),
    ("2t = k + A, complete", replace(COMPLETE, t=7), True),
    ("one colluder more than t is made for", replace(SPARSE, n_adv=2), True),
    ("without windows, A below n_adv", replace(MANY, windows=False), True),
]


def sweep(largest: int, limit: float) -> list[Case]:
    """Every even degree and the complete graph for n = 4 to `largest`, with thresholds as section 9 computes them."""
    cases = []
    for n in range(4, largest + 1):
        for k in [*range(4, n - 1, 2), n - 1]:
            for n_adv in range(1, min(4, n - 1)):
                t, a_w = (k + min(n_adv, k)) // 2 + 1, min(n_adv, k // 2)
                if t <= k and (k == n - 1 or a_w < k // 2):
                    cases.append(Case(n=n, k=k, t=t, a_w=a_w, n_adv=n_adv, n_min=max(t, 2), limit=limit))
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description="Looks for attacks on the agreement of docs/protocol.md, section 6.")
    parser.add_argument("what", choices=["rules", "sweep", "case"], help="each rule on and off; many sizes; one case")
    parser.add_argument("settings", nargs="*", help="for `case`: n=24 k=8 t=6 a_w=2 n_adv=2 n_min=8 windows=False ...")
    parser.add_argument("--largest", type=int, default=10, help="largest cohort of the sweep")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one case")
    parser.add_argument("--smallest", action="store_true", help="the attack that opens the fewest inputs")
    args = parser.parse_args()
    if args.what == "rules":
        runs = [(name, replace(case, limit=args.limit), attack) for name, case, attack in RUNS]
    elif args.what == "sweep":
        runs = [("sweep", case, False) for case in sweep(args.largest, args.limit)]
    else:
        settings = dict(setting.split("=", 1) for setting in args.settings)
        values = {name: {"True": True, "False": False}.get(text, text) for name, text in settings.items()}
        numbers = {name: value if isinstance(value, bool) else int(value) for name, value in values.items()}
        solve(Case(limit=args.limit, **numbers), args.smallest)
        return 0
    wrong = 0
    for name, case, attack in runs:
        print(f"# {name}")
        verdict = solve(case, args.smallest)
        expected = ("FEASIBLE", "OPTIMAL") if attack else ("INFEASIBLE",)
        if verdict not in expected:
            print(f"    EXPECTED {' or '.join(expected)}")
            wrong += 1
    print(f"{len(runs)} cases, {wrong} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

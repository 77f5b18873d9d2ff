use super::*;

const fn malicious(gamma: f64, delta: f64) -> Assumptions {
    Assumptions { gamma, delta, min_colluders: 1, mode: SecurityMode::Malicious }
}

const fn semi_honest(gamma: f64, delta: f64) -> Assumptions {
    Assumptions { mode: SecurityMode::SemiHonest, ..malicious(gamma, delta) }
}

/// k, t, a_w, s, tau.
fn sizes(found: Topology) -> (u32, u32, Option<u32>, u32, u32) {
    let Topology { degree, threshold, window_bound, committee } = found;
    let committee = committee.expect("a committee in malicious mode");
    (degree, threshold, window_bound, committee.size, committee.quorum)
}

/// Rows as of shared/attacks/feas2.py: exact tails, three events at 2^-82. gamma, delta in percent; n, n_adv, n_drop, the smallest
/// sparse graph k/t/a_w (k = n - 1: there is none), s/a_s/tau, and t, tau, D of the complete graph.
const FEASIBLE: &str = include_str!("feasible.txt");

#[test]
fn the_worked_values_of_section_9() {
    for (n, gamma, delta, expected) in [
        (33, 0.05, 0.05, (8, 6, Some(2), 5, 4)),
        (40, 0.05, 0.05, (10, 7, Some(2), 7, 5)),
        (50, 0.05, 0.2, (28, 16, Some(3), 24, 14)),
        (100, 0.05, 0.05, (22, 14, Some(5), 16, 11)),
        (100, 0.05, 0.1, (30, 18, Some(5), 24, 15)),
        (1000, 0.05, 0.05, (90, 65, Some(30), 58, 45)),
        (1000, 0.05, 0.1, (108, 75, Some(32), 80, 58)),
        (10_000, 0.05, 0.05, (108, 79, Some(36), 65, 51)),
        (10_000, 0.05, 0.1, (132, 93, Some(39), 93, 68)),
    ] {
        if cfg!(miri) && n > 100 {
            continue;
        }
        let found = find(n, &malicious(gamma, delta)).unwrap();
        assert_eq!(sizes(found), expected, "n = {n}, gamma = {gamma}, delta = {delta}");
    }
    // The review's values of other securities.
    for (n, delta, sigma, expected) in [
        (100, 0.05, 80, (22, 14, Some(5), 16, 11)),
        (1000, 0.05, 80, (80, 57, Some(26), 52, 40)),
        (1000, 0.05, 128, (104, 75, Some(36), 64, 51)),
        (1000, 0.1, 80, (98, 68, Some(28), 73, 52)),
        (1000, 0.1, 128, (124, 86, Some(38), 88, 65)),
        (10_000, 0.1, 80, (122, 85, Some(34), 82, 59)),
        (10_000, 0.1, 128, (152, 109, Some(47), 109, 81)),
    ] {
        if cfg!(miri) && n > 100 {
            continue;
        }
        let found = find_with(n, &malicious(0.05, delta), sigma).unwrap();
        assert_eq!(sizes(found), expected, "n = {n}, delta = {delta}, sigma = {sigma}");
    }
    for (n, degree, threshold) in [(100, 12, 6), (1000, 30, 17), (10_000, 34, 20)] {
        let found = find(n, &semi_honest(0.05, 0.05)).unwrap();
        assert_eq!(found, Topology { degree, threshold, window_bound: None, committee: None }, "n = {n}");
    }
}

#[test]
fn sizes_are_those_of_exact_tails() {
    let mut rows = 0;
    for line in FEASIBLE.lines().filter(|line| !line.starts_with('#')) {
        let values: Vec<u32> = line.split(' ').map(|value| value.parse().unwrap_or(u32::MAX)).collect();
        let [gamma, delta, n, n_adv, n_drop, k, t, a_w, s, a_s, tau, complete_t, complete_tau, tolerated] = values[..]
        else {
            panic!("{line}")
        };
        let assumptions = malicious(f64::from(gamma) / 100.0, f64::from(delta) / 100.0);
        assert_eq!((adversaries(n, &assumptions), drop_outs(n, &assumptions)), (n_adv, n_drop), "{line}");
        // Up to 32 clients the graph is complete; it tolerates what the table says, and no more.
        let search = Search::new(n, &assumptions, 80);
        let complete = search.complete().unwrap();
        assert_eq!(sizes(complete), (n - 1, complete_t, None, n, complete_tau), "{line}");
        let with = |drop_outs| Search { drop_outs, ..Search::new(n, &assumptions, 80) }.complete();
        assert!(with(tolerated).is_ok(), "{line}");
        let error = with(tolerated + 1).unwrap_err();
        assert!(
            matches!(error, DegreeError::Infeasible { tolerated: Some(limit), .. } if limit == tolerated),
            "{line}"
        );
        // The sparse search is held to the table below 33 clients too, although no round uses it there.
        let sparse = (2..n - 1).step_by(2).find_map(|k| search.sparse(k));
        match sparse {
            Some(found) => assert_eq!(sizes(found), (k, t, Some(a_w), s, tau), "{line}"),
            None => assert_eq!((k, a_w), (n - 1, u32::MAX), "{line}"),
        }
        if n >= 5 {
            assert_eq!(search.committee(), Some(Committee { size: s, quorum: tau }), "{line}");
            assert_eq!((s + a_s) / 2 + 1, tau, "{line}");
        }
        let found = find_with(n, &assumptions, 80).unwrap();
        assert_eq!(found, if n <= MAX_SMALL { complete } else { sparse.unwrap_or(complete) }, "{line}");
        rows += 1;
    }
    assert_eq!(rows, 9 * 38);
}

#[test]
fn fractions_are_rounded_towards_safety_and_never_to_nought() {
    for (n, gamma, delta, n_adv, n_drop) in [
        (100, 0.07, 0.07, 7, 7),
        (100, 0.0701, 0.0799, 8, 7),
        (100, 0.0, 0.0, 1, 1),
        (10, 0.05, 0.05, 1, 1),
        (5, 0.0, 0.0, 1, 1),
        (4, 0.05, 0.2, 1, 0),
        (4, 0.3, 0.25, 2, 0),
        (3, 0.05, 0.34, 1, 0),
        (3, 0.99, 0.99, 3, 0),
    ] {
        let assumptions = malicious(gamma, delta);
        assert_eq!((adversaries(n, &assumptions), drop_outs(n, &assumptions)), (n_adv, n_drop), "n = {n}");
    }
    let many = Assumptions { min_colluders: 3, ..malicious(0.05, 0.1) };
    assert_eq!((adversaries(40, &many), adversaries(100, &many), adversaries(3, &many)), (3, 5, 3));
    assert_eq!(adversaries(40, &Assumptions { min_colluders: 0, ..malicious(0.0, 0.1) }), 1);
}

#[test]
fn small_cohorts_work_with_usual_fractions() {
    for (gamma, delta) in [(0.05, 0.05), (0.1, 0.2), (0.0, 0.0)] {
        for (n, expected) in [(3, (2, 2, 3)), (4, (3, 3, 3)), (5, (4, 3, 4)), (10, (9, 6, 6))] {
            let (degree, threshold, window_bound, size, quorum) = sizes(find(n, &malicious(gamma, delta)).unwrap());
            assert_eq!((degree, threshold, quorum), expected, "n = {n}");
            assert_eq!((window_bound, size), (None, n));
            let found = find(n, &semi_honest(gamma, delta)).unwrap();
            assert_eq!(found, Topology { degree: n - 1, threshold: 2, window_bound: None, committee: None });
        }
    }
    // More colluders than gamma says need more shares and signatures.
    let found = find(10, &Assumptions { min_colluders: 3, ..malicious(0.05, 0.1) }).unwrap();
    assert_eq!(sizes(found), (9, 7, None, 10, 7));
}

#[test]
fn a_promise_about_drop_outs_is_kept_or_refused() {
    // Of three or four nobody can be spared, which is said and not refused.
    for (n, delta) in [(3, 0.34), (4, 0.25)] {
        let found = find(n, &malicious(0.05, delta)).unwrap();
        assert_eq!(found.tolerated_drop_outs(n), Some(0));
    }
    for (n, tolerated) in [(5, 1), (10, 3), (20, 8), (32, 14)] {
        assert_eq!(find(n, &malicious(0.05, 0.05)).unwrap().tolerated_drop_outs(n), Some(tolerated), "n = {n}");
    }
    assert_eq!(find(100, &malicious(0.05, 0.05)).unwrap().tolerated_drop_outs(100), None);
    // Two of five, of whom one colludes, are one too many.
    let error = find(5, &malicious(0.05, 0.4)).unwrap_err();
    assert!(matches!(error, DegreeError::Infeasible { n: 5, adversaries: 1, drop_outs: 2, tolerated: Some(1), .. }));
}

#[test]
fn an_infeasible_request_says_what_would_do() {
    let assumptions = malicious(0.3, 0.4);
    let error = find(10, &assumptions).unwrap_err();
    assert!(matches!(error, DegreeError::Infeasible { n: 10, adversaries: 3, drop_outs: 4, tolerated: Some(2), .. }));
    assert!(!error.to_string().contains("feasible would be"), "a device has no use for advice: {error}");
    let text = error.advised(&assumptions).to_string();
    let expected = "10 clients with 3 adversaries tolerate 2 drop-outs, fewer than the 4 that are assumed; \
                    feasible would be delta = 0.29";
    assert_eq!(text, expected);
    assert_eq!(advise(10, &malicious(0.3, 0.3)), "a cohort of 12, or delta = 0.29, or gamma = 0.15");
    assert_eq!(advise(10, &malicious(0.0, 0.9)), "delta = 0.39", "there is always one colluder");

    let error = find(3, &malicious(0.99, 0.0)).unwrap_err();
    assert!(matches!(error, DegreeError::Infeasible { n: 3, adversaries: 3, tolerated: None, .. }), "{error}");
    for (gamma, delta) in [(f64::NAN, 0.1), (0.1, 1.0), (-0.1, 0.1), (f64::INFINITY, 0.0)] {
        assert!(matches!(find(10, &semi_honest(gamma, delta)), Err(DegreeError::Fraction { .. })));
    }
    assert_eq!(find(2, &semi_honest(0.0, 0.0)), Err(DegreeError::TooFew(2)));
}

#[test]
fn where_no_degree_fits_the_complete_graph_does() {
    let found = find(40, &malicious(0.4, 0.25)).unwrap();
    assert_eq!(sizes(found), (39, 28, None, 40, 29));
    if !cfg!(miri) {
        let error = find(2000, &malicious(0.4, 0.28)).unwrap_err();
        assert!(matches!(error, DegreeError::Infeasible { tolerated: None, .. }), "{error}");
        assert!(error.to_string().contains("degree up to 1024"), "{error}");
    }
}

#[test]
fn more_colluders_or_drop_outs_never_need_fewer_neighbours_and_signatures() {
    for n in if cfg!(miri) { vec![40] } else { vec![40, 100, 1000] } {
        let fractions = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2];
        let at = |gamma, delta| sizes(find(n, &malicious(gamma, delta)).unwrap());
        for steps in fractions.windows(2) {
            for other in fractions {
                for (less, more) in
                    [(at(steps[0], other), at(steps[1], other)), (at(other, steps[0]), at(other, steps[1]))]
                {
                    assert!(
                        less.0 <= more.0 && less.1 <= more.1 && less.3 <= more.3 && less.4 <= more.4,
                        "{less:?} {more:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn fewer_neighbours_of_one_client_lie_than_of_the_cohort() {
    let all: Vec<u32> = (0..4).map(|less| adversarial_neighbours(10, &malicious(0.2, 0.1), 9 - less)).collect();
    assert_eq!(all, [2; 4], "two of ten can all be neighbours of one client");
    for (n, degree, expected) in [(100, 22, 4), (1000, 78, 11)] {
        assert_eq!(adversarial_neighbours(n, &malicious(0.05, 0.1), degree), expected, "n = {n}");
    }
    assert_eq!(adversarial_neighbours(100, &malicious(0.0, 0.1), 22), 1);
}

#[test]
fn every_small_cohort_and_fraction_gives_a_topology_or_an_error() {
    for (gamma, delta) in [(0.0, 0.0), (0.1, 0.1), (0.33, 0.33), (0.0, 0.99), (0.99, 0.0), (0.6, 0.6)] {
        for assumptions in [malicious(gamma, delta), semi_honest(gamma, delta)] {
            for n in 3..if cfg!(miri) { 6 } else { 80 } {
                let Ok(found) = find(n, &assumptions) else { continue };
                assert!(found.threshold >= 2 && found.threshold <= found.degree && found.degree < n);
                assert!(found.degree == n - 1 || (found.degree.is_multiple_of(2) && n > MAX_SMALL));
                assert_eq!(found.committee.is_some(), assumptions.mode == SecurityMode::Malicious);
                if let Some(Committee { size, quorum }) = found.committee {
                    assert!(size <= n && quorum <= size && 2 * quorum > size);
                }
            }
        }
    }
}

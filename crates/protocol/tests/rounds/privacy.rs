//! Rounds with differential privacy: what their parameters must hold, what a device demands, and a whole round with drop-outs.

use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_protocol::client::ClientError;
use unisono_protocol::encoding::Contribution;
use unisono_protocol::params::{ParamsError, RoundParams};
use unisono_protocol::policy::PrivacyDemand;
use unisono_protocol::proto;

use crate::network::{Faults, play_with};
use crate::world::{Device, open, params};

/// Parameters of a round of eight, of whom two may drop out, with noise.
fn private(noise_variance: f64, dimension: u64) -> proto::RoundParams {
    let mut wire = params(true, 6, 8, 0.0, 0.25, dimension);
    let quantiser = wire.quantiser.as_mut().unwrap();
    quantiser.l2_clip = Some(1.0);
    quantiser.privacy = Some(proto::Privacy { noise_variance });
    wire.modulus_bits = 40;
    wire
}

fn check(wire: &proto::RoundParams) -> Result<RoundParams, ParamsError> {
    RoundParams::from_payload(&wire.encode_to_vec())
}

#[test]
fn parameters_with_noise_are_bound_to_the_round_and_bad_ones_refused_by_name() {
    let wire = private(9.0, 20);
    let good = check(&wire).unwrap();
    let other = check(&private(9.5, 20)).unwrap();
    assert_ne!(good.round_id, other.round_id);
    let refused = |change: &dyn Fn(&mut proto::RoundParams)| {
        let mut wire = wire.clone();
        change(&mut wire);
        check(&wire).unwrap_err().to_string()
    };
    let quantiser = |wire: &mut proto::RoundParams, change: &dyn Fn(&mut proto::Quantiser)| {
        change(wire.quantiser.as_mut().unwrap());
    };
    assert!(refused(&|w| quantiser(w, &|q| q.l2_clip = None)).contains("`l2_clip`"));
    assert!(refused(&|w| quantiser(w, &|q| q.bits = 30)).contains("`bits` is 30"));
    let metric = proto::MetricBound { lower: 0.0, upper: 1.0 };
    assert!(refused(&|w| quantiser(w, &|q| q.metrics = vec![metric])).contains("`metrics`"));
    for noise_variance in [0.0, -3.0, f64::NAN, 1e300] {
        let noise = Some(proto::Privacy { noise_variance });
        assert!(refused(&|w| quantiser(w, &|q| q.privacy = noise)).contains("`privacy.noise_variance`"));
    }
    // 8 clients at 8 bits need 11 bits; the noise of deviation 3 each takes more.
    assert!(refused(&|w| w.modulus_bits = 11).contains("`modulus_bits` is 11; allowed is 12 to 64"));
    // With 3 of 12 colluders, the noise of a sum of 3 could all be theirs.
    let colluding = |w: &mut proto::RoundParams| (w.n_min, w.n_max, w.gamma, w.delta) = (3, 12, 0.25, 0.0);
    let error = refused(&colluding);
    assert!(error.contains("`n_min` is 3") || error.contains("no secure graph"), "{error}");
}

#[test]
fn the_guarantee_counts_the_smallest_sum_less_the_colluders() {
    let mut wire = private(9.0, 20);
    (wire.n_min, wire.n_max, wire.gamma, wire.delta) = (60, 100, 0.05, 0.2);
    let params = check(&wire).unwrap();
    let guarantee = params.guarantee().unwrap();
    assert_eq!((guarantee.contributions, guarantee.variance), (55, 55.0 * 9.0));
    let everybody = params.guarantee_of(100, 100).unwrap();
    assert_eq!(everybody.contributions, 95);
    assert!(everybody.epsilon(1e-5) < guarantee.epsilon(1e-5));
    let mut exact = wire.clone();
    exact.quantiser.as_mut().unwrap().privacy = None;
    assert_eq!(check(&exact).unwrap().guarantee(), None);
}

#[test]
fn a_device_that_demands_privacy_refuses_less_and_says_which_limit() {
    let join = |wire: &proto::RoundParams, max_epsilon| {
        let server = open(wire);
        let mut device = Device::new(0, &server, 1);
        device.trust.policy.privacy = Some(PrivacyDemand { max_epsilon, max_total_epsilon: None, delta: 1e-5 });
        device.join(server.offer())
    };
    let refusal = |result| match result {
        Err(ClientError::Policy(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let exact = refusal(join(&params(true, 6, 8, 0.0, 0.25, 20), 5.0));
    assert_eq!((exact.value.as_str(), exact.setting), ("absent", "privacy.max_epsilon"));
    let wire = private(1e5, 20);
    let epsilon = check(&wire).unwrap().guarantee().unwrap().epsilon(1e-5);
    let little = refusal(join(&wire, epsilon * 0.99));
    assert_eq!((little.value, little.setting), (format!("{epsilon:.4}"), "privacy.max_epsilon"));
    assert!(little.limit.ends_with("at delta = 0.00001"), "{}", little.limit);
    assert_eq!(join(&wire, epsilon), Ok(()));
    assert!(join(&wire, f64::NAN).is_err());
}

#[test]
fn a_whole_round_with_drop_outs_gives_the_mean_with_the_survivors_noise() {
    let d = 30_000;
    let noise_variance = 400.0;
    let wire = proto::RoundParams { chunk_elements: 1 << 13, ..private(noise_variance, d as u64) };
    let checked = check(&wire).unwrap();
    let value = |device: usize, i: usize| (device as f32 - 3.5) * (i % 5) as f32 / 1e4;
    let input = |device: usize| {
        let update: Vec<f32> = (0..d).map(|i| value(device, i)).collect();
        let contribution = Contribution { update: &update, metrics: &[], weight: 1.0 };
        let mut rng = ChaCha20Rng::seed_from_u64(device as u64);
        checked.quantiser.encode(contribution, d, checked.modulus, &mut rng).unwrap()
    };
    let mut sums = 0;
    for seed in 0..6 {
        let faults = Faults { vanish: 0.2, patience: 60, ..Faults::default() };
        let played = play_with(&wire, 8, faults, seed, Some(&input));
        let Ok(outcome) = played.result else { continue };
        assert!(played.exact);
        let survivors = outcome.survivors.len();
        let decoded = checked.quantiser.decode(&outcome.sum, d, survivors as u32).unwrap();
        assert_eq!(decoded.total_weight, survivors as f64);
        let numbers: Vec<usize> = outcome.survivors.iter().map(|id| id.0[0].into()).collect();
        let mean = |i: usize| numbers.iter().map(|&device| f64::from(value(device, i))).sum::<f64>() / survivors as f64;
        let squares = decoded.mean.iter().enumerate().map(|(i, x)| (f64::from(*x) - mean(i)).powi(2));
        let variance = squares.sum::<f64>() / d as f64;
        // In steps: m v / m^2 of noise, and at most 1/4 of rounding to the nearest. The estimate's deviation is 0.8 %.
        let step = 2.0 / 255.0f64;
        let in_steps = variance / (step * step) * survivors as f64;
        assert!((noise_variance * 0.95..(noise_variance + 2.0) * 1.05).contains(&in_steps), "{survivors}: {in_steps}");
        sums += usize::from(survivors < 8);
    }
    assert!(sums > 0, "no round with drop-outs gave a sum");
}

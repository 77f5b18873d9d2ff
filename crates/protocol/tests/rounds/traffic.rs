//! The computed traffic against the messages of real rounds.

use prost::Message;
use unisono_protocol::server::{Closed, Phase, Server};
use unisono_protocol::traffic::{PhaseTraffic, Scenario, per_client};

use crate::world::{DEVICES, Device, open, params};

/// Length of the longest Merkle path over so many leaves.
fn depth(leaves: usize) -> u64 {
    leaves.next_power_of_two().trailing_zeros().into()
}

/// Bytes by device and phase, in a round in which nobody drops out.
fn measure(params: &unisono_protocol::proto::RoundParams, count: usize) -> Vec<[PhaseTraffic; 5]> {
    let mut server: Server = open(params);
    let mut devices: Vec<Device> = (0..count).map(|i| Device::new(i, &server, 5)).collect();
    let mut measured = vec![[PhaseTraffic::default(); 5]; count];
    loop {
        let phase = server.phase();
        let mut sent = Vec::new();
        for (device, bytes) in devices.iter_mut().zip(&mut measured) {
            let bytes = &mut bytes[phase as usize];
            if phase == Phase::Advertise {
                bytes.received = server.offer().encoded_len() as u64;
                device.join(server.offer()).unwrap();
            } else {
                // Those that are not on the committee have nothing to do in its phase.
                let Some(view) = server.view(device.id()) else { continue };
                bytes.received = view.encoded_len() as u64;
                device.receive(&view).unwrap();
            }
            let message = device.message().unwrap().clone();
            bytes.sent = message.encoded_len() as u64 + device.upload().map_or(0, |upload| upload.len() as u64);
            sent.push((device.id(), message, device.upload()));
        }
        for (id, message, upload) in sent {
            server.absorb(&message, crate::world::NOW).unwrap();
            if let Some(upload) = upload {
                server.absorb_upload(id, &upload).unwrap();
            }
        }
        match server.close().unwrap() {
            Closed::Next(next) => server = *next,
            Closed::Finished(_) => return measured,
        }
    }
}

#[test]
fn computed_traffic_is_that_of_the_real_messages() {
    // Complete graphs of odd size, where all devices send as many mask ciphertexts.
    for (malicious, count, delta) in
        [(true, 40, 0.05), (true, 21, 0.2), (true, 17, 0.2), (false, 40, 0.2), (false, 7, 0.0)]
    {
        let dimension = 500;
        let params = params(malicious, 4, count, 0.05, delta, dimension);
        let measured = measure(&params, count as usize);
        let server = open(&params);
        let parsed = server.params();
        let scenario = Scenario {
            clients: count,
            elements: parsed.vector_len() as u64,
            modulus_bits: params.modulus_bits,
            assumptions: parsed.assumptions,
        };
        let computed = per_client(&scenario).unwrap();
        let server_committee = computed.topology.committee;
        let k = u64::from(computed.topology.degree);
        for phase in Phase::ALL {
            let computed = computed.of(phase);
            let mut largest = PhaseTraffic::default();
            // Who is not on the committee has nothing to do with it.
            let on_committee = |device: &&[PhaseTraffic; 5]| phase != Phase::Confirm || device[phase as usize].sent > 0;
            let asked = measured.iter().filter(on_committee);
            let off = measured.len() - asked.clone().count();
            let committee = server_committee.map_or(count, |committee| committee.size);
            assert_eq!(
                off as u32,
                if phase == Phase::Confirm && malicious {
                    count - committee
                } else {
                    off as u32 * u32::from(phase == Phase::Confirm)
                }
            );
            for device in asked {
                let real = device[phase as usize];
                largest.sent = largest.sent.max(real.sent);
                largest.received = largest.received.max(real.received);
                // Indices here take at most one byte and its tag; the harness's task has 4 characters instead of 16, its
                // deadlines and round number are shorter, and its roster has more leaves than the cohort has clients.
                assert!(real.sent <= computed.sent, "{phase}: sent {real:?}, computed {computed:?}");
                assert!(computed.sent - real.sent <= 6 * k + 8, "{phase}: sent {real:?}, computed {computed:?}");
                let roster_paths = 34 * (depth(DEVICES) - depth(count as usize)) * (k + 1) + 2 * (k + 1);
                assert!(real.received <= computed.received + roster_paths, "{phase}: {real:?}, computed {computed:?}");
            }
            // The device with the longest paths comes close to what is received.
            let slack = 40 + 12 * k + if phase == Phase::Share { 34 * (k + 1) * 3 } else { 0 };
            let gap = computed.received.abs_diff(largest.received);
            assert!(gap <= slack, "{phase}: received {largest:?}, computed {computed:?}");
        }
    }
}

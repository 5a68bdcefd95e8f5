//! Every law in every incident.

use super::*;
use crate::policy::law;
use crate::settings::Profile;

fn settings() -> HostSettings {
    HostSettings::profile(Profile::default())
}

#[test]
fn incidents_have_the_names_that_are_listed_and_room_for_all_that_guests_touch() {
    assert_eq!(ALL.iter().map(|it| it.name).collect::<Vec<_>>(), NAMES);
    for incident in ALL {
        for second in 0..incident.seconds {
            let of = incident.guests.iter().map(|guest| {
                let mut loads = guest.loads.iter().rev();
                let load = loads.find(|load| load.at_s <= second).expect("from 0 on");
                assert!(guest.kernel.0 + load.allocated.0 <= guest.size.0);
                guest.kernel.0 + load.hot.0
            });
            let hot: u64 = of.sum();
            assert!(hot < incident.budget.0 * 15 / 16, "{}", incident.name);
        }
    }
}

#[test]
fn runs_of_the_same_incident_are_the_same() {
    for incident in ALL {
        let [one, other] = [0, 1].map(|_| run(incident, &law::Senpai, &settings()));
        assert_eq!(one.figures, other.figures);
        assert_eq!(one.recording, other.recording);
    }
}

/// The naive law shows what was told, and no law that can be chosen does as badly.
#[test]
fn incident_happens_with_its_controller_and_with_no_other() {
    for incident in ALL {
        let was = as_it_was(incident, &settings()).figures;
        assert!(
            was.stall_s > 5.0 || was.oom_kills > 0,
            "{}: {was:?}",
            incident.name
        );
        for law in law::ALL {
            let now = run(incident, *law, &settings()).figures;
            assert!(
                now.settled_s.is_some(),
                "{} {law:?}: {now:?}",
                incident.name
            );
            // A guest without swap of its own, on a host that for a moment is too short to give relief.
            let kills = if incident.name == "late-relief" { 4 } else { 0 };
            assert!(now.oom_kills <= kills, "{} {law:?}: {now:?}", incident.name);
            assert!(
                now.stall_s < was.stall_s,
                "{} {law:?}: {now:?} {was:?}",
                incident.name
            );
        }
    }
}

/// The shape of each, as it was told.
#[test]
fn incidents_look_as_they_were_told() {
    let was = |name: &str| {
        let incident = ALL.iter().find(|incident| incident.name == name);
        as_it_was(incident.expect("listed"), &settings()).figures
    };
    assert_eq!(was("shrink").settled_s, None, "it thrashes to the end");
    assert!(was("idle-cycle").oscillations >= 4, "it goes in cycles");
    let stuck = was("stuck-release").settled_s;
    assert!(stuck.is_none_or(|seconds| seconds > 60.0), "{stuck:?}");
    assert!(
        was("boot-storm").overshoot_mib > 50.0,
        "also those under pressure"
    );
    assert!(was("late-relief").stall_s > 20.0, "it seems to hang");
}

use std::collections::BTreeMap;

use super::*;
use crate::recording::Column;

const OPS: &str = "guest_operations_total";
const USED: &str = "memvisor_host_used_bytes";

/// A recording of five seconds: the host's memory in use, and the operations of guests `a-1`, `a-2` and `b`.
fn recording(factor: f64) -> Recording {
    let column = |values: [f64; 5]| -> Column {
        let value = |value: f64| (!value.is_nan()).then_some(value * factor);
        values.map(value).into()
    };
    let vm = |values| BTreeMap::from([(OPS.to_owned(), column(values))]);
    let nan = f64::NAN;
    Recording {
        at_ms: vec![0, 1000, 2000, 3000, 4000],
        host: BTreeMap::from([(USED.to_owned(), column([10.0, 20.0, 60.0, 20.0, 30.0]))]),
        vms: BTreeMap::from([
            ("a-1".to_owned(), vm([0.0, 100.0, 200.0, 300.0, 400.0])),
            // Killed, and started again.
            ("a-2".to_owned(), vm([nan, 0.0, 100.0, nan, 50.0])),
            ("b".to_owned(), vm([nan, nan, nan, 7.0, 7.0])),
        ]),
        marks: Vec::new(),
    }
}

fn figure(of: &str, value: Value, (from_ms, to_ms): (u64, u64)) -> Figure {
    let of_host = of == "host";
    Figure {
        of_host,
        counter: !of_host,
        of: of.to_owned(),
        series: vec![if of_host { USED } else { OPS }.to_owned()],
        value,
        from_ms,
        to_ms,
        variant: None,
    }
}

#[test]
fn values_are_those_of_the_window_and_of_all_that_are_named() {
    let recording = recording(1.0);
    let all = (0, u64::MAX);
    for (of, what, window, expected) in [
        ("host", Value::Mean, all, Some(28.0)),
        ("host", Value::Max, all, Some(60.0)),
        ("host", Value::Max, (3000, 4000), Some(30.0)),
        ("host", Value::Min, (1000, 3999), Some(20.0)),
        ("host", Value::First, all, Some(10.0)),
        ("host", Value::Last, (0, 2500), Some(60.0)),
        ("host", Value::Growth, (2000, 4000), Some(-30.0)),
        ("host", Value::Rate, (2000, 4000), Some(-15.0)),
        ("host", Value::Mean, (4001, 9000), None),
        ("a-1", Value::Rate, all, Some(100.0)),
        ("a-1", Value::Growth, (1000, 3000), Some(200.0)),
        // A value alone has not grown.
        ("a-1", Value::Growth, (1000, 1999), None),
        // 100 until it was killed, 50 after it was started again, within three seconds.
        ("a-2", Value::Growth, all, Some(150.0)),
        ("a-2", Value::Rate, all, Some(50.0)),
        ("a-*", Value::Rate, all, Some(150.0)),
        ("a-*", Value::Max, all, Some(450.0)),
        ("*", Value::Last, all, Some(457.0)),
        ("c", Value::Mean, all, None),
    ] {
        let found = value(&figure(of, what, window), &recording);
        assert_eq!(found, expected, "{of} {what} {window:?}");
    }
}

fn expect(figure: Figure, per: Option<Figure>, bound: Bound) -> Expect {
    Expect {
        text: "it is so".to_owned(),
        figure,
        per,
        unit: "operations/s".to_owned(),
        bound,
        published: None,
    }
}

#[test]
fn median_of_repetitions_is_judged_in_each_variant() {
    let runs = [1.0, 5.0, 2.0].map(recording);
    let slow = [0.5].map(recording);
    let all = [
        Recorded {
            variant: "fast",
            runs: &runs,
        },
        Recorded {
            variant: "slow",
            runs: &slow,
        },
    ];
    let bound = Bound {
        at_least: Some(150.0),
        at_most: Some(200.0),
    };
    let rate = figure("a-1", Value::Rate, (0, u64::MAX));
    let verdicts = judge(&expect(rate.clone(), None, bound), &all);
    let said: Vec<_> = verdicts
        .iter()
        .map(|verdict| (verdict.variant.as_str(), verdict.value, verdict.holds))
        .collect();
    assert_eq!(
        said,
        [
            ("fast", Some(200.0), Some(true)),
            ("slow", Some(50.0), Some(false))
        ]
    );
    assert_eq!(
        verdicts[0].measured(),
        "200 operations/s (100 operations/s to 500 operations/s)"
    );
    assert_eq!(
        verdicts[0].allowed(),
        " (at least 150 operations/s; at most 200 operations/s)"
    );
    // Without bounds a figure is shown and not judged.
    let shown = judge(&expect(rate.clone(), None, Bound::default()), &all);
    assert!(shown.iter().all(|verdict| verdict.holds.is_none()));
    // By another variant: 200 by 50.
    let of = |name: &str| Figure {
        variant: Some(name.to_owned()),
        ..rate.clone()
    };
    let verdicts = judge(&expect(of("fast"), Some(of("slow")), bound), &all);
    assert_eq!(verdicts.len(), 1);
    assert_eq!(verdicts[0].value, Some(4.0));
    // By another figure of the same run: factors cancel out.
    let last = figure("b", Value::Last, (0, u64::MAX));
    let verdicts = judge(&expect(of("fast"), Some(last), bound), &all);
    assert_eq!(verdicts[0].values, [100.0 / 7.0; 3]);
}

#[test]
fn what_was_not_measured_or_is_divided_by_nothing_does_not_hold() {
    let runs = [recording(1.0), recording(0.0)];
    let all = [Recorded {
        variant: "",
        runs: &runs[1..],
    }];
    let bound = Bound {
        at_least: None,
        at_most: Some(1e9),
    };
    let window = (0, u64::MAX);
    let by_zero = expect(
        figure("a-1", Value::Rate, window),
        Some(figure("b", Value::Last, window)),
        bound,
    );
    let none = expect(figure("nobody", Value::Mean, window), None, bound);
    for expect in [by_zero, none] {
        let verdicts = judge(&expect, &all);
        let [verdict] = &verdicts[..] else {
            panic!("{verdicts:?}");
        };
        assert_eq!((verdict.value, verdict.holds), (None, Some(false)));
        assert_eq!(verdict.measured(), "nothing");
    }
}

#[test]
fn median_is_the_middle_and_spread_the_ends() {
    assert_eq!(median(&[]), None);
    assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 3.0)));
}

use super::*;
use crate::telemetry::fixture;

fn recording() -> Recording {
    let mut recording = Recording::default();
    for at in 0..4 {
        recording.push(at * 1000, &fixture::host(), &BTreeMap::new());
    }
    recording
}

#[test]
fn nothing_in_a_report_ends_the_element_that_it_stands_in() {
    let mut recording = recording();
    let evil = "</script><script>alert(1)</script><!--";
    let columns = recording.vms["web"].clone();
    recording.vms.insert(evil.to_owned(), columns);
    recording.mark(3000, evil.to_owned());
    let report = Report {
        title: evil.to_owned(),
        facts: vec![(evil.to_owned(), evil.to_owned())],
        runs: vec![Run {
            variant: evil.to_owned(),
            repetition: 1,
            recording: &recording,
        }],
        ..Report::default()
    };
    let page = page(&report);
    let json = page.split_once("id=\"data\">").expect("data").1;
    let json = json.split_once("</script>").expect("an end").0;
    let data: serde_json::Value = serde_json::from_str(json).expect("whole");
    assert_eq!(data["report"]["title"], evil);
    assert_eq!(data["report"]["runs"][0]["marks"][0]["text"], evil);
    assert!(!page.contains("<script>alert") && !page.contains("<!--"));
}

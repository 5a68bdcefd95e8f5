//! The report as a page of its own: no script, no file beside it, bars as SVG.

use std::fmt::Write;

use super::machine::Machine;
use super::report::{Better, Report, Row, Series, number, ratio};

const WIDTH: f64 = 720.0;
const LABEL: f64 = 90.0;
const VALUE: f64 = 170.0;
const BAR: f64 = 18.0;
const GAP: f64 = 6.0;

const STYLE: &str = "\
:root{--ours:#2563a8;--peer:#9aa5b1;--ink:#1d2733;--soft:#5b6875;--ground:#fff;--line:#d8dee5}\
@media(prefers-color-scheme:dark){:root{--ours:#6aa7e8;--peer:#6b7785;--ink:#e6ebf0;--soft:#a3aeba;\
--ground:#12181f;--line:#2c3742}}\
body{margin:2rem auto;max-width:52rem;padding:0 1rem;background:var(--ground);color:var(--ink);\
font:15px/1.5 system-ui,sans-serif}\
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin:2rem 0 .5rem;\
border-bottom:1px solid var(--line)}p{color:var(--soft);margin:.2rem 0}\
figure{margin:1rem 0}figcaption{margin-bottom:.3rem}figcaption b{font-weight:600}\
figcaption span{color:var(--soft)}svg{width:100%;height:auto;display:block}\
text{font:12px system-ui,sans-serif;fill:var(--ink)}.ours{fill:var(--ours)}.peer{fill:var(--peer)}\
.spread{stroke:var(--ink);stroke-width:1.5;fill:none}.axis{stroke:var(--line)}";

/// The page. `command` is the command line that makes it again.
#[must_use]
pub fn page(report: &Report, machine: &Machine, command: &str) -> String {
    let mut html =
        String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    html += "<meta name=\"viewport\" content=\"width=device-width\"><title>memvisor bench</title>";
    let _ = write!(
        html,
        "<style>{STYLE}</style></head><body>\n<h1>memvisor bench</h1>\n"
    );
    let _ = writeln!(html, "<p>{}</p>", escape(&machine.to_string()));
    let _ = writeln!(html, "<p><code>{}</code></p>", escape(command));
    html += "<p>Bars are medians, whiskers the least and the most of all rounds. Behind a peer's \
             value stands how many times better memvisor is. All were measured turn by turn on the \
             same content.</p>\n";
    for remark in report.remarks() {
        let _ = writeln!(html, "<p>{}</p>", escape(&remark));
    }
    let mut bench = None;
    for rows in report.rows().chunk_by(|a, b| a.case == b.case) {
        let Some(Row { case, .. }) = rows.first() else {
            continue;
        };
        if bench.replace(case.bench) != Some(case.bench) {
            let _ = writeln!(html, "<h2>{}</h2>", case.bench);
        }
        figure(&mut html, rows);
    }
    html += "</body></html>\n";
    html
}

/// One case: ours, and a bar for each peer.
fn figure(html: &mut String, rows: &[Row]) {
    let Some(Row { case, ours, .. }) = rows.first() else {
        return;
    };
    let better = match case.better {
        Better::More => "more is better",
        Better::Less => "less is better",
    };
    let mut bars: Vec<(&str, &Series, String)> = vec![("memvisor", ours, String::new())];
    for row in rows {
        if let Some((name, series)) = &row.peer {
            let ratio = row
                .ratio()
                .map(|value| format!(" (memvisor {})", ratio(value)));
            bars.push((name, series, ratio.unwrap_or_default()));
        }
    }
    let most = bars.iter().map(|(_, series, _)| series.max());
    let most = most.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let caption = format!("{}, {}", case.case, case.metric);
    let _ = write!(
        html,
        "<figure><figcaption><b>{}</b> <span>{}, {better}</span></figcaption>",
        escape(&caption),
        escape(case.unit)
    );
    let height = (BAR + GAP) * count(bars.len()) + GAP;
    let _ = write!(
        html,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\
         <line class=\"axis\" x1=\"{LABEL}\" y1=\"0\" x2=\"{LABEL}\" y2=\"{height}\"/>",
        escape(&caption)
    );
    for (index, (name, series, ratio)) in bars.iter().enumerate() {
        let y = GAP + count(index) * (BAR + GAP);
        bar(html, (name, series, ratio), most, y);
    }
    *html += "</svg></figure>\n";
}

fn bar(html: &mut String, (name, series, ratio): (&str, &Series, &str), most: f64, y: f64) {
    let at = |value: f64| LABEL + value / most * (WIDTH - LABEL - VALUE);
    let (middle, text) = (y + BAR / 2.0, y + BAR - 5.0);
    let class = if name == "memvisor" { "ours" } else { "peer" };
    let (end, low, high) = (at(series.median()), at(series.min()), at(series.max()));
    let _ = write!(
        html,
        "<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>\
         <rect class=\"{class}\" x=\"{LABEL}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>\
         <path class=\"spread\" d=\"M{low:.1} {:.1}v6m0 -3H{high:.1}m0 -3v6\"/>\
         <text x=\"{:.1}\" y=\"{text:.1}\">{}{}</text>",
        LABEL - 6.0,
        escape(name),
        end - LABEL,
        middle - 3.0,
        high + 6.0,
        number(series.median()),
        escape(ratio),
    );
}

#[expect(clippy::cast_precision_loss, reason = "a few bars")]
const fn count(number: usize) -> f64 {
    number as f64
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::Bench;
    use super::super::report::Case;
    use super::*;

    #[test]
    fn page_has_a_bar_for_each_and_escapes_what_the_user_wrote() {
        let report = Report::default();
        let case = Case::more(Bench::Scan, &"<files & more>", "first look", "pages/s");
        for value in [10.0, 20.0, 30.0] {
            report.ours(&case, value);
            report.peer(&case, "ksm", value / 4.0);
            report.peer(&case, "read", value * 2.0);
        }
        let page = page(&report, &Machine::here(), "memvisor bench \"x\"");
        assert_eq!(page.matches("<figure>").count(), 1);
        assert_eq!(page.matches("<rect").count(), 3);
        assert_eq!(page.matches("class=\"spread\"").count(), 3);
        assert!(page.contains("&lt;files &amp; more&gt;"), "{page}");
        assert!(!page.contains("<files"), "{page}");
        assert!(page.contains("4.00x") && page.contains("0.500x"), "{page}");
        assert!(!page.contains("http"), "it needs nothing from elsewhere");
    }

    #[test]
    fn report_without_rows_is_still_a_page() {
        let report = Report::default();
        report.remark("not compared with ksm: <no>".to_owned());
        let page = page(&report, &Machine::here(), "x");
        assert!(page.contains("not compared with ksm: &lt;no&gt;"));
        assert!(page.ends_with("</html>\n"));
    }
}

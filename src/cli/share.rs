//! `memvisor share`: why pages are not shared, and what sharing would save.

use clap::{Args, Subcommand};

use super::exit::Exit;
use super::vm::{ClientArgs, output};
use super::{print, table};
use crate::telemetry::{EstimatedPages, HostStatus, ShareEstimate, SharingStatus};
use crate::units::Pages;

#[derive(Debug, Args)]
pub(super) struct ShareArgs {
    #[command(subcommand)]
    request: Request,

    #[command(flatten)]
    common: ClientArgs,

    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Request {
    /// Show where the pages of each VM stand with sharing: why those that are not shared are not.
    Show,
    /// Estimate what sharing would save, whether it is on or not, from a sample of contents. Maps and changes nothing.
    Estimate,
}

pub(super) fn run(args: ShareArgs) -> anyhow::Result<Exit> {
    let client = args.common.client()?;
    match args.request {
        Request::Show if args.json => {
            let vms = client.status()?.vms.into_iter();
            let vms: serde_json::Map<_, _> = vms
                .map(|vm| Ok((vm.name, serde_json::to_value(vm.sharing)?)))
                .collect::<serde_json::Result<_>>()?;
            output(&vms, true, |_| String::new())?;
        }
        Request::Show => print(&standings(&client.status()?))?,
        Request::Estimate => output(&client.estimate_sharing()?, args.json, estimate)?,
    }
    Ok(Exit::Success)
}

fn size(pages: Pages) -> String {
    pages.bytes().to_string()
}

/// What each number of [`SharingStatus::each`] means, where its name does not say it.
fn meaning(name: &str) -> &'static str {
    match name {
        "unscanned" => "not scanned since it came into RAM or was written",
        "volatile" => "changes too often",
        "unique" => "equal to no page that it may share with",
        "other salt" => "equal to pages that only VMs of another salt have",
        "VMA budget" => "its guest has no mapping left for it",
        "no memory" => "there was no memory for a frame",
        "moving" => "being moved just now",
        "off" => "sharing is off: `memvisor share estimate` says what it would save",
        _ => "",
    }
}

/// The numbers that are not zero, each with what it means.
pub(super) fn reasons(sharing: &SharingStatus) -> Vec<(&'static str, String)> {
    let there = (sharing.each().into_iter()).filter(|(_, pages)| *pages > Pages(0));
    let row = |(name, pages): (&'static str, Pages)| {
        let sized = format!("{} ({} pages)", size(pages), pages.0);
        let text = match meaning(name) {
            "" => sized,
            meaning => format!("{sized}: {meaning}"),
        };
        (name, text)
    };
    there.map(row).collect()
}

/// A column for each VM and one for the host, a row for each reason that there is.
fn standings(host: &HostStatus) -> String {
    let all = &host.totals.sharing;
    let mut head = vec!["PAGES".to_owned()];
    head.extend(host.vms.iter().map(|vm| vm.name.clone()));
    head.extend(["ALL".to_owned(), String::new()]);
    let mut rows = vec![head];
    for (at, (name, total)) in all.each().into_iter().enumerate() {
        if total > Pages(0) {
            let mut row = vec![name.to_owned()];
            row.extend(host.vms.iter().map(|vm| size(vm.sharing.each()[at].1)));
            row.extend([size(total), meaning(name).to_owned()]);
            rows.push(row);
        }
    }
    let mut sum = vec!["size".to_owned()];
    sum.extend(host.vms.iter().map(|vm| size(vm.sharing.total())));
    sum.extend([size(all.total()), String::new()]);
    rows.push(sum);
    let mut cost = vec!["if written".to_owned()];
    cost.extend(host.vms.iter().map(|vm| size(vm.break_cost_pages)));
    let meaning = "it would take so much more if it wrote all its shared pages";
    cost.extend([size(host.share.break_cost_pages), meaning.to_owned()]);
    rows.push(cost);
    let reserve = format!("kept free for that: {}\n", size(host.share.reserve_pages));
    table::numbers(&rows) + &reserve
}

fn estimated(pages: EstimatedPages) -> String {
    match pages.error_pages {
        Pages(0) => size(pages.pages),
        error => format!("{} +- {}", size(pages.pages), size(error)),
    }
}

fn estimate(estimate: &ShareEstimate) -> String {
    let mut text = format!(
        "sharing saves now      {}\nit would save          {}, and {} of zeroes\nif salts did not count {}\n\n",
        size(estimate.saved_pages),
        estimated(estimate.would_save),
        size(estimate.zero_pages),
        estimated(estimate.without_salts),
    );
    let head = ["NAME", "IN RAM", "SAVES NOW", "WOULD SAVE", "ZEROES", ""];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(estimate.vms.iter().map(|vm| {
        [
            vm.name.clone(),
            size(vm.looked_at_pages),
            size(vm.saved_pages),
            estimated(vm.would_save),
            size(vm.zero_pages),
            String::new(),
        ]
    }));
    text += &table::numbers(&rows);
    text += &format!(
        "\n{} in RAM, {} contents counted, {:.1} % of all; it took {} ms\n",
        size(estimate.looked_at_pages),
        estimate.contents,
        estimate.sampled_percent,
        estimate.took_ms,
    );
    if !estimate.missing.is_empty() {
        text += &format!(
            "without VMs that did not answer in time: {}\n",
            estimate.missing.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{VmShareEstimate, fixture};

    #[test]
    fn standings_have_a_row_for_each_reason_that_there_is_and_add_up() {
        let text = standings(&fixture::host());
        let rows: Vec<Vec<&str>> = (text.lines())
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|it| !it.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(rows[0], ["PAGES", "web", "database-primary-01", "ALL"]);
        let row = |name: &str| rows.iter().find(|row| row[0] == name);
        assert_eq!(
            row("shared").expect("there")[1..],
            ["40.0 MiB", "22.0 MiB", "62.0 MiB"]
        );
        assert_eq!(
            row("size").expect("there")[1..],
            ["256.0 MiB", "128.0 MiB", "384.0 MiB"]
        );
        assert_eq!(row("if written").expect("there")[3], "46.5 MiB");
        assert!(row("off").is_none(), "{text}");
        assert!(
            row("volatile").expect("there")[4].contains("changes too often"),
            "{text}"
        );
    }

    #[test]
    fn estimate_says_its_error_and_who_is_missing() {
        let vm = VmShareEstimate {
            name: "web".to_owned(),
            looked_at_pages: Pages(25_600),
            would_save: EstimatedPages {
                pages: Pages(2560),
                error_pages: Pages(256),
            },
            ..VmShareEstimate::default()
        };
        let text = estimate(&ShareEstimate {
            would_save: EstimatedPages {
                pages: Pages(5120),
                error_pages: Pages(0),
            },
            sampled_percent: 12.34,
            contents: 16_384,
            vms: vec![vm],
            missing: vec!["db".to_owned()],
            ..ShareEstimate::default()
        });
        for part in [
            "it would save          20.0 MiB, and 0 B of zeroes",
            "10.0 MiB +- 1.0 MiB",
            "16384 contents counted, 12.3 % of all",
            "did not answer in time: db",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
    }
}

//! `memvisor get` and `memvisor set`: the settings of a running host.

use std::collections::HashSet;

use clap::Args;

use super::exit::{Exit, UsageError};
use super::table::aligned;
use super::vm::{ClientArgs, output};
use crate::settings::{DEFAULT, Key, Scalar, SettingView};

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// The settings, such as Mem.IdleTax [default: all of them].
    #[arg(value_name = "NAME", value_parser = Key::find)]
    names: Vec<Key>,

    /// Show all settings, each with its default, its range and the origin of its value.
    #[arg(long, conflicts_with = "names")]
    all: bool,

    /// Print JSON: an object for one NAME, otherwise an array.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: ClientArgs,
}

pub(super) fn get(args: GetArgs) -> anyhow::Result<Exit> {
    let client = args.common.client()?;
    match args.names[..] {
        [] if args.all => output(&client.settings()?, args.json, |all| groups(all))?,
        [] => output(&client.settings()?, args.json, |all| values(all))?,
        [name] => output(&client.setting(name)?, args.json, one)?,
        _ => {
            let views = args.names.iter().map(|name| client.setting(*name));
            let views = views.collect::<Result<Vec<_>, _>>()?;
            output(&views, args.json, |views| views.iter().map(one).collect())?;
        }
    }
    Ok(Exit::Success)
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// The setting, such as Mem.IdleTax; NAME=VALUE works as well.
    #[arg(value_name = "NAME")]
    name: String,

    /// The value, such as 50, 50% or 30s; `default` removes a value that was set.
    #[arg(value_name = "VALUE", allow_negative_numbers = true)]
    value: Option<String>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: ClientArgs,
}

impl SetArgs {
    /// Setting and value, if the setting can have that value.
    pub(super) fn setting(&self) -> Result<(Key, &str), UsageError> {
        let pair = match &self.value {
            Some(value) => Some((self.name.as_str(), value.as_str())),
            None => self.name.split_once('='),
        };
        let needed = || UsageError(format!("`{}` needs a value: NAME VALUE", self.name));
        let (name, value) = pair.ok_or_else(needed)?;
        let key = Key::find(name).map_err(|error| UsageError(error.to_string()))?;
        if value != DEFAULT {
            let read = key.read(value);
            read.map_err(|error| UsageError(format!("{error}, or {DEFAULT}")))?;
        }
        Ok((key, value))
    }
}

pub(super) fn set(args: &SetArgs) -> anyhow::Result<Exit> {
    let (key, value) = args.setting()?;
    let view = args.common.clone().client()?.set_setting(key, value)?;
    output(&view, args.json, line)?;
    Ok(Exit::Success)
}

/// A value with its unit. The unit of a choice lists what is allowed, so it is left out.
fn with_unit(value: &Scalar, view: &SettingView) -> String {
    if view.min.is_none() || view.unit.is_empty() {
        return value.to_string();
    }
    format!("{value} {}", view.unit)
}

fn range(view: &SettingView) -> String {
    match (&view.min, &view.max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        _ => view.unit.clone(),
    }
}

/// The current value of a setting, in a line.
pub(super) fn line(view: &SettingView) -> String {
    let (value, default) = (with_unit(&view.value, view), with_unit(&view.default, view));
    format!(
        "{} = {value} (from {}, default {default})\n",
        view.name, view.from
    )
}

/// Everything about a setting.
fn one(view: &SettingView) -> String {
    format!("{}  range {}\n  {}\n", line(view), range(view), view.effect)
}

/// Name and value of each setting.
fn values(views: &[SettingView]) -> String {
    let row = |view: &SettingView| [view.name.clone(), with_unit(&view.value, view)];
    aligned(&views.iter().map(row).collect::<Vec<_>>())
}

/// The settings in groups by subject.
fn groups(views: &[SettingView]) -> String {
    let group = |view: &SettingView| Key::find(&view.name).map_or("other", |key| key.spec().group);
    let mut names: Vec<&str> = views.iter().map(group).collect();
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(*name));
    let mut rows = vec![["", "VALUE", "DEFAULT", "RANGE", "FROM"].map(str::to_owned)];
    for name in names {
        rows.push([name, "", "", "", ""].map(str::to_owned));
        rows.extend(views.iter().filter(|view| group(view) == name).map(|view| {
            [
                format!("  {}", view.name),
                with_unit(&view.value, view),
                with_unit(&view.default, view),
                range(view),
                view.from.to_string(),
            ]
        }));
    }
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Layers;

    fn views() -> Vec<SettingView> {
        let mut layers = Layers::default();
        layers.set("Mem.IdleTax", "50").expect("in range");
        layers.views()
    }

    #[test]
    fn all_settings_are_grouped_with_value_default_range_and_origin() {
        let text = groups(&views());
        // How far apart columns are depends on the longest text in them.
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        for line in [
            "VALUE DEFAULT RANGE FROM",
            "sharing",
            "Mem.ShareScanTime 0.05 min 0.05 min 0.002 to 600 profile",
            "Mem.IdleTax 50 % 75 % 0 to 99 set",
            "Memvisor.FreeStates 5.0 5.0 one of 2002, 4.1, 5.0, 6.0 profile",
        ] {
            assert!(
                text.lines().any(|found| words(found) == line),
                "no `{line}` in\n{text}"
            );
        }
        let rows = text.lines().filter(|line| line.starts_with(' '));
        let last_columns: HashSet<_> = rows.map(|row| row.rfind(' ')).collect();
        assert_eq!(last_columns.len(), 1, "{text}");
        let groups = text.lines().filter(|line| !line.starts_with(' '));
        assert_eq!(text.lines().count(), views().len() + groups.count() + 1);
    }

    #[test]
    fn one_setting_has_a_line_its_range_and_its_effect() {
        let views = views();
        let text = one(&views[Key::IdleTax as usize]);
        assert!(text.starts_with("Mem.IdleTax = 50 % (from set, default 75 %)\n  range 0 to 99\n"));
        assert!(text.contains("others may take"), "{text}");
        assert_eq!(values(&views).lines().count(), views.len());
    }
}

//! Where the value of a host setting comes from.
//!
//! A setting can be given in four places: the profile, the configuration file, the command line of
//! the host, and at run time. If they were written into one table, a reload of the file would
//! overwrite what somebody has set by hand, and a setting that was removed from the file would keep
//! the value it had there. So each place has a layer of its own. The highest layer that has a value for a
//! setting decides, and a layer is replaced as a whole.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::choice::Profile;
use super::error::SettingError;
use super::table::{HostSettings, Key, TABLE};
use super::value::{Scalar, Value};

/// The word that takes away what was set at run time.
pub const DEFAULT: &str = "default";

/// Settings given in one place.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layer(BTreeMap<Key, Value>);

impl Layer {
    /// Notes a setting; returns the value it had in this layer, if any.
    ///
    /// # Errors
    /// [`SettingError`]; the layer is as before.
    pub fn put(&mut self, name: &str, text: &str) -> Result<Option<Value>, SettingError> {
        let key = Key::find(name)?;
        Ok(self.0.insert(key, key.read(text)?))
    }
}

/// The layer that decides about a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The profile's default.
    Profile,
    /// The configuration file.
    File,
    /// The command line of the host.
    #[serde(rename = "command line")]
    CommandLine,
    /// Set at run time.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Profile => "profile",
            Self::File => "file",
            Self::CommandLine => "command line",
            Self::Set => "set",
        })
    }
}

/// A host setting as clients see it. Numbers are in the setting's unit, whole ones without a point.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SettingView {
    /// Its name.
    pub name: String,
    /// The value that is in force.
    pub value: Scalar,
    /// The default of the profile that the host runs with.
    pub default: Scalar,
    /// The least it may be; `null` for a choice.
    pub min: Option<Scalar>,
    /// The most it may be; `null` for a choice.
    pub max: Option<Scalar>,
    /// The unit, empty for a switch; of a choice, the words to choose from.
    pub unit: String,
    /// Where the value comes from.
    pub from: Origin,
    /// What it does.
    pub effect: String,
}

/// The host settings of all places.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layers {
    profile: Profile,
    file: Layer,
    command_line: Layer,
    set: Layer,
}

impl Layers {
    /// The settings a host starts with.
    #[must_use]
    pub fn new(profile: Profile, file: Layer, command_line: Layer) -> Self {
        let set = Layer::default();
        Self {
            profile,
            file,
            command_line,
            set,
        }
    }

    /// The values in force.
    #[must_use]
    pub fn effective(&self) -> HostSettings {
        HostSettings::of(|key| self.decided(key).0)
    }

    fn decided(&self, key: Key) -> (Value, Origin) {
        let layers = [
            (&self.set, Origin::Set),
            (&self.command_line, Origin::CommandLine),
            (&self.file, Origin::File),
        ];
        let found = layers
            .iter()
            .find_map(|(layer, origin)| Some((*layer.0.get(&key)?, *origin)));
        found.unwrap_or((self.profile.default_of(key.spec()), Origin::Profile))
    }

    /// All settings, in the order of [`TABLE`].
    #[must_use]
    pub fn views(&self) -> Vec<SettingView> {
        TABLE.iter().map(|spec| self.view_of(spec.key)).collect()
    }

    /// One setting.
    ///
    /// # Errors
    /// [`SettingError::Unknown`].
    pub fn view(&self, name: &str) -> Result<SettingView, SettingError> {
        Ok(self.view_of(Key::find(name)?))
    }

    fn view_of(&self, key: Key) -> SettingView {
        let spec = key.spec();
        let (value, from) = self.decided(key);
        let (min, max) = spec.kind.bounds().unzip();
        SettingView {
            name: spec.name.to_owned(),
            value: spec.kind.scalar(value),
            default: spec.kind.scalar(self.profile.default_of(spec)),
            min,
            max,
            unit: spec.kind.unit(),
            from,
            effect: spec.effect.to_owned(),
        }
    }

    /// Sets a setting at run time; [`DEFAULT`] takes away what was set at run time.
    ///
    /// # Errors
    /// [`SettingError`]; everything is as before.
    pub fn set(&mut self, name: &str, text: &str) -> Result<SettingView, SettingError> {
        let key = Key::find(name)?;
        if text.trim() == DEFAULT {
            self.set.0.remove(&key);
        } else {
            self.set.put(name, text)?;
        }
        Ok(self.view_of(key))
    }

    /// These layers with another file.
    #[must_use]
    pub fn with_file(&self, file: Layer) -> Self {
        Self {
            file,
            ..self.clone()
        }
    }

    /// Puts another file in the place of the old one. Returns the settings whose values in force have
    /// changed.
    pub fn replace_file(&mut self, file: Layer) -> Vec<SettingView> {
        let new = self.with_file(file);
        let before = std::mem::replace(self, new);
        let changed = TABLE.iter().map(|spec| spec.key);
        changed
            // By what is in force: a value of the file that a higher layer hides changes nothing.
            .filter(|key| before.decided(*key).0 != self.decided(*key).0)
            .map(|key| self.view_of(key))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer(settings: &[(&str, &str)]) -> Layer {
        let mut layer = Layer::default();
        for (name, text) in settings {
            layer.put(name, text).expect("valid");
        }
        layer
    }

    fn tax(layers: &Layers) -> (u32, Origin) {
        let view = layers.view("mem.idletax").expect("there is one");
        assert_eq!(view.value, layers.effective().idle_tax.into());
        (layers.effective().idle_tax, view.from)
    }

    #[test]
    fn highest_layer_decides_and_default_removes_only_the_top() {
        let mut layers = Layers::new(
            Profile::Esx,
            layer(&[("Mem.IdleTax", "10"), ("Mem.CtlMaxPercent", "11%")]),
            layer(&[("Mem.IdleTax", "20")]),
        );
        assert_eq!(tax(&layers), (20, Origin::CommandLine));
        assert_eq!(layers.effective().ctl_max_percent, 11);
        layers.set("Mem.IdleTax", "30").expect("in range");
        assert_eq!(tax(&layers), (30, Origin::Set));
        let view = layers.set("Mem.IdleTax", DEFAULT).expect("allowed");
        assert_eq!((view.value, view.from), (20.into(), Origin::CommandLine));
        layers.set("Mem.IdleTax", DEFAULT).expect("nothing to do");
        assert_eq!(tax(&layers), (20, Origin::CommandLine));
    }

    #[test]
    fn another_file_replaces_the_whole_layer_and_nothing_else() {
        let file = layer(&[("Mem.IdleTax", "10"), ("Mem.CtlMaxPercent", "11")]);
        let mut layers = Layers::new(Profile::Lab, file, Layer::default());
        layers.set("Mem.MemZipMaxPct", "7").expect("in range");
        let file = layer(&[("Mem.IdleTax", "12"), ("Mem.MemZipMaxPct", "9")]);
        let changed: Vec<_> = layers
            .replace_file(file)
            .into_iter()
            .map(|view| (view.name, view.value, view.from))
            .collect();
        let expected = [
            ("Mem.IdleTax".to_owned(), 12.into(), Origin::File),
            ("Mem.CtlMaxPercent".to_owned(), 65.into(), Origin::Profile),
        ];
        assert_eq!(changed, expected);
        assert_eq!(layers.effective().mem_zip_max_pct, 7);
    }

    #[test]
    fn view_has_the_default_of_the_running_profile() {
        let json = |profile| {
            let layers = Layers::new(profile, Layer::default(), Layer::default());
            let view = layers.view("Mem.ShareScanTime").expect("there is one");
            serde_json::to_value(view).expect("no map")
        };
        let mut expected = serde_json::json!({
            "name": "Mem.ShareScanTime", "value": 0.05, "default": 0.05, "min": 0.002,
            "max": 600, "unit": "min", "from": "profile",
            "effect": Key::ShareScanTime.spec().effect,
        });
        assert_eq!(json(Profile::Lab), expected);
        expected["value"] = 60.into();
        expected["default"] = 60.into();
        assert_eq!(json(Profile::Esx), expected);
        let layers = Layers::default();
        let states = layers.view("Memvisor.FreeStates").expect("there is one");
        assert_eq!((states.min, states.max), (None, None));
        assert_eq!(states.unit, "one of 2002, 4.1, 5.0, 6.0");
    }

    /// A number of thousandths within the bounds of a setting, and one beyond each bound.
    fn around(key: Key, part: u16) -> (String, [String; 2]) {
        let number = |scalar: &Scalar| scalar.to_string().parse::<f64>().expect("a number");
        let (min, max) = key.spec().kind.bounds().expect("no choice");
        let (min, max) = (number(&min), number(&max));
        let inside = min + (max - min) * f64::from(part) / f64::from(u16::MAX);
        let below = if min > 0.0 { min * 0.9 } else { -1.0 };
        let whole = key.spec().unit_is_whole();
        let inside = if whole { inside.floor() } else { inside };
        (
            inside.to_string(),
            [below.to_string(), (max + 1.0).to_string()],
        )
    }

    impl super::super::Spec {
        fn unit_is_whole(&self) -> bool {
            matches!(self.kind, super::super::Kind::Whole { .. })
        }
    }

    proptest! {
        #[test]
        fn what_is_got_can_be_set_and_is_the_same(row in 0..TABLE.len(), part: u16) {
            let spec = &TABLE[row];
            let mut layers = Layers::default();
            let text = match spec.kind {
                super::super::Kind::Choice(words) => words[usize::from(part) % words.len()].to_owned(),
                _ => around(spec.key, part).0,
            };
            let got = layers.set(spec.name, &text).expect("in range");
            prop_assert_eq!(got.from, Origin::Set);
            let again = layers.set(spec.name, &got.value.to_string()).expect("as it was got");
            prop_assert_eq!(&again, &got);
            let json = serde_json::to_string(&got).expect("no map");
            prop_assert_eq!(serde_json::from_str::<SettingView>(&json).expect("a view"), got);
        }

        #[test]
        fn what_is_out_of_range_is_refused_and_changes_nothing(row in 0..TABLE.len(), part: u16) {
            let spec = &TABLE[row];
            let mut layers = Layers::default();
            let wrong = match spec.kind {
                super::super::Kind::Choice(_) => [part.to_string() + "x", String::new()],
                _ => around(spec.key, part).1,
            };
            for text in wrong {
                let error = layers.set(spec.name, &text).expect_err(&text).to_string();
                prop_assert!(error.contains(spec.name) && error.contains(&text), "{}", error);
                prop_assert!(error.contains(&spec.kind.allowed()), "{}", error);
            }
            prop_assert_eq!(layers, Layers::default());
        }

        #[test]
        fn any_text_is_a_value_or_an_error_of_one_line(row in 0..TABLE.len(), text: String) {
            if let Err(error) = Layers::default().set(TABLE[row].name, &text) {
                prop_assert!(!error.to_string().contains(char::is_control));
            }
        }
    }
}

//! Settings that can be changed only by starting the host anew.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use super::choice::{EngineChoice, Profile};
use super::value::{Scalar, shown};
use crate::machine::{BudgetChoice, BudgetError};
use crate::policy::Policy;
use crate::units::{Bytes, Pages};

/// What takes effect only when a host starts: the table `[host]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct StartSettings {
    /// The set of defaults.
    pub profile: Option<Profile>,
    /// The policy by which memory is divided.
    pub policy: Option<&'static dyn Policy>,
    /// The budget.
    #[serde(deserialize_with = "budget")]
    pub memory: Option<BudgetChoice>,
    /// The engine.
    pub engine: Option<EngineChoice>,
    /// Where swap files are made.
    #[serde(deserialize_with = "directory")]
    pub swap_dir: Option<PathBuf>,
    /// Where the host cache of swapped pages is.
    #[serde(deserialize_with = "directory")]
    pub swap_cache: Option<PathBuf>,
    /// Where sessions of balloon agents are recorded.
    #[serde(deserialize_with = "directory")]
    pub record_balloon: Option<PathBuf>,
    /// Where metrics are served.
    pub http: Option<HttpAddress>,
}

fn budget<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BudgetChoice>, D::Error> {
    let text = Scalar::deserialize(from)?.to_string();
    let wrong = |_| {
        let (text, allowed) = (shown(&text), BudgetError::ALLOWED);
        de::Error::custom(format!("cannot be `{text}`; allowed: {allowed}"))
    };
    text.parse().map(Some).map_err(wrong)
}

fn directory<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let dir = PathBuf::deserialize(from)?;
    if dir.as_os_str().is_empty() {
        let text = "cannot be ``; allowed: the path of a directory";
        return Err(de::Error::custom(text));
    }
    Ok(Some(dir))
}

/// A size above zero in whole pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "Scalar")]
pub struct Memory(pub Bytes);

impl TryFrom<Scalar> for Memory {
    type Error = String;

    fn try_from(written: Scalar) -> Result<Self, String> {
        let text = written.to_string();
        let bytes = text.parse::<Bytes>().ok();
        let pages = bytes.and_then(Bytes::whole_pages);
        let pages = pages.filter(|pages| *pages > Pages(0)).ok_or_else(|| {
            let text = shown(&text);
            format!("cannot be `{text}`; allowed: a size of whole pages, such as 512M")
        })?;
        Ok(Self(pages.bytes()))
    }
}

/// Where metrics are served. A port alone is one of the loopback interface, which no other machine reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "Scalar")]
pub struct HttpAddress(pub SocketAddr);

impl FromStr for HttpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let address = text.parse().or_else(|_| text.parse().map(port));
        address.map(Self).map_err(|_| {
            let text = shown(text);
            format!(
                "cannot be `{text}`; allowed: an IP address with a port from 0 to 65535, such as 127.0.0.1:9464 or \
                 [::1]:9464, or a port alone"
            )
        })
    }
}

impl TryFrom<Scalar> for HttpAddress {
    type Error = String;

    fn try_from(written: Scalar) -> Result<Self, String> {
        written.to_string().parse()
    }
}

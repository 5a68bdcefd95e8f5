//! Bodies of the control API.

use std::fmt::Debug;

use arbitrary::{Result, Unstructured};
use memvisor::control::{BalloonRequest, SettingRequest};
use memvisor::settings::{Scalar, VM_KEYS, VmPatch};
use memvisor::units::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{mutate, text};

pub(crate) fn bodies(u: &mut Unstructured<'_>) -> Result<()> {
    let target_bytes = u.arbitrary::<Option<u64>>()?.map(Bytes);
    valid(u, &BalloonRequest { target_bytes })?;
    let value = match u.int_in_range(0..=3)? {
        0 => Scalar::Bool(u.arbitrary()?),
        1 => Scalar::Number(u.arbitrary::<i64>()?.into()),
        2 => serde_json::Number::from_f64(u.arbitrary()?).map_or(0.into(), Scalar::Number),
        _ => Scalar::Text(text(u, 40)?),
    };
    valid(u, &SettingRequest { value })?;
    let mut patch = VmPatch::default();
    for _ in 0..u.int_in_range(0..=4)? {
        let values = [
            "64M",
            "none",
            "on",
            "off",
            "low",
            "high",
            "1000",
            "/var/swap",
            "blue",
            "",
        ];
        let _ = patch.put(u.choose(&VM_KEYS)?.name, u.choose(&values)?);
    }
    valid(u, &patch)
}

/// A body that a good client sends, and the same with a few changes.
fn valid<T>(u: &mut Unstructured<'_>, body: &T) -> Result<()>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut bytes = serde_json::to_vec(body).expect("a body");
    assert_eq!(
        serde_json::from_slice::<T>(&bytes).as_ref().ok(),
        Some(body)
    );
    mutate(u, &mut bytes)?;
    if let Ok(body) = serde_json::from_slice::<T>(&bytes) {
        let again = serde_json::to_vec(&body).expect("a body");
        assert_eq!(serde_json::from_slice::<T>(&again).ok(), Some(body));
    }
    Ok(())
}

//! One guest as the host sees it.

mod budget;
mod history;
mod home;
mod parking;
mod table;

pub use budget::{Budget, Urgency};
pub use history::History;
pub use home::{Home, KIND_NAMES, KINDS};
pub use parking::Parking;
pub use table::{Entry, KeptPage, PageGuard, PageTable};

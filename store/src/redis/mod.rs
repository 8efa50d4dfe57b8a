//! The Redis back end.
use crate::*;
pub(crate) async fn open(_url: &str, _options: &StoreOptions) -> Result<Store, StoreError> { unimplemented!() }

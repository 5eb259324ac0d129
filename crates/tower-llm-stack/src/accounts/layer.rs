use tower_layer::Layer;

use super::{Account, AccountService};

/// Sends requests to an [`Account`].
///
/// It goes directly around an HTTP client.
#[derive(Clone, Debug)]
pub struct AccountLayer {
    account: Account,
}

impl AccountLayer {
    /// Creates the layer of an account.
    #[must_use]
    pub fn new(account: Account) -> Self {
        Self { account }
    }
}

impl<S> Layer<S> for AccountLayer {
    type Service = AccountService<S>;

    fn layer(&self, inner: S) -> AccountService<S> {
        AccountService::new(self.account.clone(), inner)
    }
}

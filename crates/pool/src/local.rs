//! Machines of this machine: a provider that costs nothing and needs no account.

use bulkhead_core::FleetName;
use bulkhead_fleet::local::{Local, LocalError, StockMachine};
use bulkhead_provider::{Answer, Capabilities, Provider, ProviderError, Seen, Status, UserData, Wanted};
use bulkhead_scale::{Billing, CreateAnswer, DeleteAnswer, ServerId, Time};

/// A provider over the stock machines of a local fleet. They are booted Debian systems in `systemd-nspawn`; of what is
/// wanted, name and user data count.
#[derive(Debug)]
pub struct LocalProvider {
    local: Local,
    suffix: String,
}

impl LocalProvider {
    /// Makes machines of this fleet beside the nodes of the local fleet.
    #[must_use]
    pub fn new(local: Local, fleet: &FleetName) -> Self {
        Self { local, suffix: format!(".{fleet}.bulkhead") }
    }
}

fn failed(operation: &'static str) -> impl FnOnce(LocalError) -> ProviderError {
    move |source| ProviderError::Here { operation, source: Box::new(source) }
}

fn seen(machine: &StockMachine) -> Seen {
    Seen {
        id: ServerId(machine.id),
        name: machine.name.as_str().into(),
        created: Time(machine.created_ms),
        status: match (machine.address, machine.is_running) {
            (None, _) => Status::New,
            (Some(_), true) => Status::Active,
            (Some(_), false) => Status::Off,
        },
        v4: machine.address,
        v6: None,
    }
}

impl Provider for LocalProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            is_name_unique: true,
            billing: Billing::Free,
            batch: 1,
            per_minute: None,
            per_hour: None,
            user_data_max_bytes: UserData::MAX_BYTES,
        }
    }

    fn create(&self, wanted: &Wanted) -> Answer<CreateAnswer> {
        match self.local.create_stock(&wanted.name, wanted.user_data.as_str()) {
            Ok(id) => Answer { answer: CreateAnswer::Made(ServerId(id)), why: None },
            // What could not be made is not listed, and goes.
            Err(error) => {
                let answer = match error {
                    LocalError::NoAddress { .. } => CreateAnswer::Quota,
                    LocalError::NotRoot => CreateAnswer::Forbidden,
                    _ => CreateAnswer::Refused,
                };
                Answer { answer, why: Some(failed("make a machine")(error)) }
            }
        }
    }

    fn list(&self) -> Result<Vec<Seen>, ProviderError> {
        let machines = self.local.stock().map_err(failed("list machines"))?;
        Ok(machines.iter().filter(|machine| machine.name.ends_with(&self.suffix)).map(seen).collect())
    }

    fn get(&self, id: ServerId) -> Result<Option<Seen>, ProviderError> {
        Ok(self.local.stock_machine(id.0).map_err(failed("look at a machine"))?.as_ref().map(seen))
    }

    fn delete(&self, id: ServerId, name: &str) -> Answer<DeleteAnswer> {
        let answer = match self.get(id) {
            Ok(None) => Ok(DeleteAnswer::Absent),
            Ok(Some(seen)) if &*seen.name != name => Ok(DeleteAnswer::Renamed),
            Ok(Some(_)) => match self.local.delete_stock(id.0) {
                Ok(()) => Ok(DeleteAnswer::Accepted),
                Err(error) => Err(failed("delete a machine")(error)),
            },
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => Answer { answer, why: None },
            Err(error) => Answer { answer: DeleteAnswer::Busy, why: Some(error) },
        }
    }
}

//! A loop's view of providers: pools and what a machine of each is bought as.

use crate::{enrolment::Enrolment, runner::Servers};
use bulkhead_core::PoolName;
use bulkhead_provider::{Provider, UserData, Wanted};
use bulkhead_scale::{CreateAnswer, DeleteAnswer, Server, ServerId};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// One provider's machines, as pools want them.
pub struct Provided {
    provider: Arc<dyn Provider>,
    /// What a machine of a pool is bought as; its name is filled in.
    wanted: BTreeMap<PoolName, Wanted>,
    /// Who makes the keys by which machines are known; without it all are told what their pool's are told.
    enrolment: Option<Arc<Enrolment>>,
    /// Takes a sentence about what went wrong.
    log: Box<dyn Fn(&str) + Send + Sync>,
}

impl fmt::Debug for Provided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provided").field("provider", &self.provider).finish_non_exhaustive()
    }
}

impl Provided {
    /// Machines of these pools come from this provider.
    #[must_use]
    pub fn new(
        provider: Arc<dyn Provider>,
        wanted: BTreeMap<PoolName, Wanted>,
        log: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        Self { provider, wanted, enrolment: None, log }
    }

    /// Tells each machine a host key of its own, which is kept until it is a node.
    #[must_use]
    pub fn enrolling(self, enrolment: Arc<Enrolment>) -> Self {
        Self { enrolment: Some(enrolment), ..self }
    }

    /// What a machine is told at its first boot.
    fn user_data(&self, name: &str, like: &Wanted) -> Result<UserData, String> {
        let Some(enrolment) = &self.enrolment else { return Ok(like.user_data.clone()) };
        let text = enrolment.user_data(name).map_err(|error| chain(&error))?;
        UserData::new(&text).map_err(|error| chain(&error))
    }

    fn told<A>(&self, answer: bulkhead_provider::Answer<A>) -> A {
        if let Some(why) = answer.why {
            (self.log)(&chain(&why));
        }
        answer.answer
    }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl Servers for Provided {
    fn create(&self, pool: &PoolName, name: &str) -> CreateAnswer {
        let Some(like) = self.wanted.get(pool) else {
            (self.log)(&format!("nothing says what a machine of pool `{pool}` is bought as"));
            return CreateAnswer::Refused;
        };
        match self.user_data(name, like) {
            Ok(user_data) => self.told(self.provider.create(&Wanted { name: name.into(), user_data, ..like.clone() })),
            // Nothing was asked for.
            Err(why) => {
                (self.log)(&why);
                CreateAnswer::Refused
            }
        }
    }

    fn list(&self) -> Option<Vec<Server>> {
        match self.provider.list() {
            Ok(seen) => Some(seen.iter().map(bulkhead_provider::Seen::to_server).collect()),
            Err(error) => {
                (self.log)(&chain(&error));
                None
            }
        }
    }

    fn delete(&self, server: ServerId, name: &str) -> DeleteAnswer {
        self.told(self.provider.delete(server, name))
    }
}

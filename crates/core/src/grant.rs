//! Scale grants: what a program may do by itself on the machines that it buys.
//!
//! A person signs one for a pool and one service of an app. Whoever holds the
//! key that it names may then, on nodes of that pool alone, run exactly that
//! service from exactly that image, several times side by side, and stop it
//! again; nothing else, and until the grant ends. It must meet what its
//! environment demands of an order that runs the image, so it is never a way
//! around a threshold or a green statement.
//!
//! Each node runs the granted service at most [`Grant::instances`] times, as apps
//! that are called `APP-1`, `APP-2`, … there. How many nodes there are is for
//! whoever buys them: a node knows of no other. [`Grant::machines`] binds those
//! who hold the key and are honest, and is what people agreed to.
//!
//! A JSON document, signed as SSHSIG in the namespace [`NAMESPACE`].

use crate::{
    digest::{OrderId, SecretDigest},
    name::{AppName, EnvironmentName, FleetName, PoolName, SecretName, ServiceName},
    order::{Action, Order, Run, SECRETS_MAX, ServiceSpec, check_services},
    signed::document_bytes,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// SSHSIG namespace of scale grants.
pub const NAMESPACE: &str = "grant@bulkhead";
/// The largest grant that anyone reads.
pub const GRANT_MAX_BYTES: usize = 256 << 10;
/// How long one may last: who forgets one is rid of it after a year.
pub const LIFETIME_MAX_S: i64 = 366 * 24 * 3600;
/// The most instances on one machine.
pub const INSTANCES_MAX: u32 = 1000;

/// What is granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Version of this format: 1.
    pub format: u32,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// The environment it is for.
    pub environment: EnvironmentName,
    /// The pool on whose nodes it holds.
    pub pool: PoolName,
    /// The app whose service is run.
    pub app: AppName,
    /// What is run: one service, with its whole sandbox, from this image.
    pub run: Run,
    /// The values of the secrets that the service has, as they are sealed to the pool. Whoever holds [`Self::key`] opens
    /// them and seals them to each node, so this is for them to hold to: no node sees what was sealed to the pool.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, SecretDigest>,
    /// Whether the service may have volumes, each instance its own, which are deleted with it. Nothing that is stored
    /// outlives an instance.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scratch: bool,
    /// The OpenSSH public key of whoever may act on it; the policy must give it the role `scale`.
    pub key: String,
    /// How many machines the pool may have at most.
    pub machines: u32,
    /// How many instances there may be on one machine.
    pub instances: u32,
    /// When it was made, by the signer's clock.
    pub issued: Timestamp,
    /// From when on nothing more is run. What runs goes on, and can be stopped still.
    pub not_after: Timestamp,
}

impl Grant {
    /// Reads a grant from its exact bytes. Verify signatures before calling this.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let grant: Self = serde_json::from_slice(bytes).map_err(|error| format!("not a scale grant: {error}"))?;
        grant.check()?;
        Ok(grant)
    }

    /// Its id: sha256 of its exact bytes.
    #[must_use]
    pub fn id(bytes: &[u8]) -> OrderId {
        OrderId::of(bytes)
    }

    /// The bytes to sign.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        document_bytes(self)
    }

    /// The service that it is about.
    ///
    /// # Panics
    /// On a grant that was not checked, and is about none.
    #[must_use]
    pub fn service(&self) -> &ServiceSpec {
        self.run.services.first().expect("a grant is about one service")
    }

    /// The name that people have for what it runs: `APP/SERVICE`.
    #[must_use]
    pub fn workload(&self) -> String {
        workload(&self.app, &self.service().name)
    }

    /// The app as which an instance runs on its node; `None` where there may be none of this number, which counts from 1.
    #[must_use]
    pub fn instance(&self, number: u32) -> Option<AppName> {
        if number == 0 || number > self.instances {
            return None;
        }
        instance(&self.app, number)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.format != 1 {
            return Err(format!("scale grant format {} is not known here", self.format));
        }
        if self.not_after <= self.issued || self.not_after.0.saturating_sub(self.issued.0) > LIFETIME_MAX_S {
            return Err("it lasts at most a year".into());
        }
        if self.machines == 0 || self.instances == 0 || self.instances > INSTANCES_MAX {
            return Err(format!("it is for at least one machine, and 1 to {INSTANCES_MAX} instances on each"));
        }
        check_services(&self.run.services)?;
        let [service] = self.run.services.as_slice() else {
            return Err("it is about one service".into());
        };
        if let Some(volume) = service.volumes.first().filter(|_| !self.scratch) {
            return Err(format!(
                "service `{}` has volume `{}`, and the grant does not say that volumes may go with each instance",
                service.name, volume.name
            ));
        }
        if let Some(secret) = service.secrets.iter().find(|name| !self.secrets.contains_key(*name)) {
            return Err(format!("service `{}` has secret `{secret}`, for which no value is granted", service.name));
        }
        if let Some(secret) = self.secrets.keys().find(|name| !service.secrets.contains(*name)) {
            return Err(format!("a value of secret `{secret}` is granted, and service `{}` has none", service.name));
        }
        if self.secrets.len() > SECRETS_MAX {
            return Err(format!("a service has at most {SECRETS_MAX} secrets"));
        }
        if !self.run.fallback.is_empty() {
            return Err("it lists fallbacks, which only orders of people have".into());
        }
        if instance(&self.app, self.instances).is_none() {
            return Err(format!("app `{}` has too long a name to be numbered", self.app));
        }
        Ok(())
    }

    /// Whether it covers this order on a node of this pool. Who signed the order is for whoever verifies.
    ///
    /// # Errors
    /// What it does not cover, in a sentence.
    pub fn covers(&self, order: &Order, pool: Option<&PoolName>, now: Timestamp) -> Result<(), String> {
        if self.fleet != order.fleet || self.environment != order.environment {
            return Err(format!("the grant is for `{}` of fleet `{}`", self.environment, self.fleet));
        }
        match pool {
            Some(pool) if *pool == self.pool => {}
            Some(pool) => return Err(format!("the grant is for pool `{}`; this node is of `{pool}`", self.pool)),
            None => return Err(format!("the grant is for pool `{}`; this node is of none", self.pool)),
        }
        if !(1..=self.instances).any(|number| self.instance(number).as_ref() == Some(&order.app)) {
            return Err(format!(
                "the grant is for apps `{0}-1` to `{0}-{1}`, and not for `{2}`",
                self.app, self.instances, order.app
            ));
        }
        if order.targets.len() > self.machines as usize {
            return Err(format!("the grant is for {} machines, the order for {}", self.machines, order.targets.len()));
        }
        if order.break_glass.is_some() {
            return Err("no grant lets anybody break glass".into());
        }
        if order.targets.values().any(|target| target.floor.is_some()) {
            return Err("no grant lets anybody use counters up".into());
        }
        match &order.action {
            // Whoever began it may end it, later too.
            Action::Run(_) if self.not_after <= now => Err(format!("the grant ended at {}", self.not_after)),
            // Where it comes from is part of what people signed.
            Action::Run(run) if *run != self.run => Err("the grant is to run something else".into()),
            Action::Remove { volumes: true } if !self.scratch => Err("the grant is not to delete volumes".into()),
            Action::Remove { volumes: false } if self.scratch => Err("the grant is to delete volumes too".into()),
            Action::Run(_) | Action::Stop { .. } | Action::Remove { .. } => Ok(()),
            other => Err(format!("the grant is to run, stop and remove instances, and not to {}", other.verb())),
        }
    }
}

/// The name of a service of an app, as people write it.
#[must_use]
pub fn workload(app: &AppName, service: &ServiceName) -> String {
    format!("{app}/{service}")
}

/// The app that one is an instance of, by its name alone.
#[must_use]
pub fn app_of(instance: &AppName) -> Option<AppName> {
    let (app, number) = instance.as_str().rsplit_once('-')?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    if is_number && !number.is_empty() { app.parse().ok() } else { None }
}

fn instance(app: &AppName, number: u32) -> Option<AppName> {
    format!("{app}-{number}").parse().ok()
}

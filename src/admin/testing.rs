//! A gateway that is none, for tests of the routes: it says what the test wants, and remembers what it was told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Admin, DrainOrder, Operations, Reloaded, Settings, Stage, client, start};
use crate::config::{Config, Sources, System};
use crate::delivery::transport::Discard;
use crate::delivery::{Limits, Means, Target, TargetId, Targets};
use crate::policy::Policies;
use crate::shard::Shards;

/// What a test decides, and what became of it.
pub struct FakeGateway {
    pub config: Arc<Config>,
    pub shards: Shards,
    pub stage: Mutex<Stage>,
    pub reload: Mutex<Result<Reloaded, String>>,
    pub upgrade: Mutex<Result<String, String>>,
    pub drained: Mutex<Vec<DrainOrder>>,
    /// Done when it is told to reload.
    pub on_reload: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl FakeGateway {
    /// With no shards; with the configuration that `toml` is.
    pub fn new(data: &std::path::Path, toml: &str) -> Arc<FakeGateway> {
        let file = data.join("fake.toml");
        std::fs::write(&file, format!("data = {:?}\n{toml}", data.to_str().unwrap())).unwrap();
        let system = System { hostname: "mx.test".into(), cores_count: 1, descriptors_max: 1000 };
        let config = Config::load(&Sources { file: Some(file), ..Sources::default() }, &system).unwrap();
        Arc::new(FakeGateway {
            config: Arc::new(config),
            shards: Shards::new(Vec::new()),
            stage: Mutex::new(Stage::Ready),
            reload: Mutex::new(Ok(Reloaded::default())),
            upgrade: Mutex::new(Ok("process 7 serves".into())),
            drained: Mutex::default(),
            on_reload: Mutex::default(),
        })
    }

    /// The control plane over it, as configured.
    pub fn serve(self: &Arc<Self>) -> Served {
        Served(Some(start(Settings::of(&self.config).unwrap(), self.clone()).unwrap()))
    }

    /// What the CLI would be answered.
    pub fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        client::get(&self.config, path)
    }

    /// What the CLI would be answered.
    pub fn post<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: serde_json::Value,
    ) -> Result<T, String> {
        client::post(&self.config, path, &body)
    }
}

/// Stops when it is dropped.
pub struct Served(Option<Admin>);

impl std::ops::Deref for Served {
    type Target = Admin;

    fn deref(&self) -> &Admin {
        self.0.as_ref().expect("it was not dropped")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(admin) = self.0.take() {
            admin.stop(Duration::from_secs(10));
        }
    }
}

impl Operations for FakeGateway {
    fn shards(&self) -> Shards {
        self.shards.clone()
    }

    fn config(&self) -> Arc<Config> {
        self.config.clone()
    }

    fn targets(&self) -> Targets {
        let discard = Means::Async(Arc::new(Discard));
        Targets::new(vec![Target::new(TargetId(0), "store", discard, Limits::default(), 8)])
    }

    fn policies(&self) -> Policies {
        Policies::new(Vec::new())
    }

    fn reload(&self) -> Result<Reloaded, String> {
        if let Some(done) = &*self.on_reload.lock().unwrap() {
            done();
        }
        self.reload.lock().unwrap().clone()
    }

    fn drain(&self, order: DrainOrder) {
        self.drained.lock().unwrap().push(order);
        *self.stage.lock().unwrap() = Stage::Draining { sessions: 3, messages: 4 };
    }

    fn upgrade(&self) -> Result<String, String> {
        self.upgrade.lock().unwrap().clone()
    }

    fn stage(&self) -> Stage {
        *self.stage.lock().unwrap()
    }
}

//! The list of all endpoints: one line per module that has some.

use super::Routes;
use crate::client;

pub fn routes() -> Routes {
    Routes::default().join(client::discovery::routes())
}

#[cfg(test)]
mod tests {
    use crate::App;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::http::Router;
    use crate::rng::Rng;

    #[tokio::test]
    async fn the_list_does_not_contradict_itself() {
        let config = Config::new(ruma::owned_server_name!("hs.test"));
        let app = App::new(config, Clock::manual(0), Rng::seeded(1));
        Router::new(app, super::routes()).map(|_| ()).unwrap();
    }
}

//! The list of all endpoints: one line per module that has some.

use crate::client;
use crate::http::Routes;

pub fn routes() -> Routes {
    Routes::default()
        .join(client::discovery::routes())
        .join(client::create_room::routes())
        .join(client::media::routes())
        .join(client::membership::routes())
        .join(client::message::routes())
}

#[cfg(test)]
mod tests {
    use crate::App;
    use crate::config::Config;
    use crate::http::Router;

    #[tokio::test]
    async fn the_list_does_not_contradict_itself() {
        let config = Config::new(ruma::owned_server_name!("hs.test"));
        let app = App::in_memory(config);
        Router::new(app, super::routes()).map(|_| ()).unwrap();
    }
}

//! The list of all endpoints: one line per module that has some.

use crate::auth::Access;
use crate::http::Routes;
use crate::{admin, client};

/// What clients and servers see.
pub fn routes() -> Routes {
    Routes::default()
        .join(client::discovery::routes())
        .join(client::create_room::routes())
        .join(client::keys::routes())
        .join(client::signing_keys::routes())
        .join(client::room_keys::routes())
        .join(client::dehydrated_device::routes())
        .join(client::to_device::routes())
        .join(client::media::routes())
        .join(client::previews::routes())
        .join(client::membership::routes())
        .join(client::message::routes())
        .join(client::register::routes())
        .join(client::session::routes())
        .join(client::oauth::routes())
        .join(client::fallback::routes())
        .join(client::threepids::routes())
        .join(client::password_policy::routes())
        .join(client::initial_sync::routes())
        .join(client::account::routes())
        .join(client::devices::routes())
        .join(client::profile::routes())
        .join(client::capabilities::routes())
        .join(client::account_data::routes())
        .join(client::tags::routes())
        .join(client::filters::routes())
        .join(client::push_rules::routes())
        .join(client::pushers::routes())
        .join(client::notifications::routes())
        .join(client::calls::routes())
        .join(client::delayed_events::routes())
        .join(client::openid::routes())
        .join(client::user_directory::routes())
        .join(client::admin::routes())
        .join(admin::register::routes())
        .join(admin::desk::open_routes())
        .join(desk().guard(Access::Admin))
        .join(client::sync::routes())
        .join(client::sliding_sync::routes())
        .join(client::sliding_sync_merged::routes())
        .join(client::receipts::routes())
        .join(client::typing::routes())
        .join(client::presence::routes())
        .join(client::directory::routes())
        .join(client::event_stream::routes())
        .join(client::events::routes())
        .join(client::members::routes())
        .join(client::messages::routes())
        .join(client::relations::routes())
        .join(client::threads::routes())
        .join(client::search::routes())
        .join(client::spaces::routes())
        .join(client::reporting::routes())
        .join(client::mutual_rooms::routes())
        .join(client::thirdparty::routes())
        .join(client::appservice::routes())
        .join(client::timestamp::routes())
        .join(client::upgrade::routes())
        .join(client::room_state::routes())
}

/// What the administration socket answers.
pub fn admin() -> Routes {
    Routes::default().join(admin::routes()).join(admin::desk::open_routes()).join(desk())
}

/// What administrators may ask for, where clients connect as well as on the socket.
fn desk() -> Routes {
    admin::desk::routes()
        .join(client::messages::admin_routes())
        .join(client::events::admin_routes())
        .join(client::timestamp::admin_routes())
        .join(client::spaces::admin_routes())
}

/// What the metrics listener answers.
pub fn metrics() -> Routes {
    Routes::default().join(admin::metrics::routes())
}

#[cfg(test)]
mod tests {
    use crate::App;
    use crate::config::Config;
    use crate::http::Router;
    use crate::limits::Class;

    #[test]
    fn every_rate_limit_has_an_endpoint() {
        let used: Vec<Class> = super::routes().classes().collect();
        for class in Class::ALL {
            assert!(used.contains(&class), "{class:?}");
        }
    }

    /// Those that are named after an endpoint are in force there, and not only somewhere.
    #[test]
    fn each_kind_of_work_has_its_own_limit() {
        let routes = super::routes();
        let class = |path: &str| routes.class_of("POST", path).or_else(|| routes.class_of("PUT", path));
        for (path, expected) in [
            ("/_matrix/client/v3/createRoom", Class::CreateRoom),
            ("/_matrix/client/v3/rooms/{room_id}/upgrade", Class::CreateRoom),
            ("/_matrix/client/v3/sendToDevice/{event_type}/{txn_id}", Class::ToDevice),
            ("/_matrix/client/v3/publicRooms", Class::Search),
            ("/_matrix/client/v3/login", Class::Login),
        ] {
            assert_eq!(class(path), Some(expected), "{path}");
        }
        assert_eq!(routes.class_of("GET", "/_matrix/client/v3/publicRooms"), Some(Class::Other));
    }

    #[tokio::test]
    async fn the_list_does_not_contradict_itself() {
        let config = Config::new(ruma::owned_server_name!("hs.test"));
        let app = App::in_memory(config);
        for routes in [super::routes(), super::admin(), super::metrics()] {
            Router::new(app.clone(), routes).map(|_| ()).unwrap();
        }
    }
}

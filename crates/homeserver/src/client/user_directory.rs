//! The user directory: everybody finds everybody on this server.

use ruma::api::client::user_directory::search_users::v3::{Request, Response, User};

use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::users::directory;

const MAX_RESULTS: u64 = 50;

pub fn routes() -> Routes {
    Routes::default().ruma(search).limit(Class::Search)
}

async fn search(ctx: Ctx<Request>) -> Result<Response> {
    let (read, request) = (ctx.app.store.snapshot(), ctx.request);
    let limit = u64::from(request.limit).min(MAX_RESULTS) as usize;
    let work = move || directory::search(&read, &request.search_term, limit);
    let (found, limited) = tokio::task::spawn_blocking(work).await.map_err(Error::internal)??;
    let user = |(user_id, shown): (_, crate::users::profiles::Shown)| User {
        user_id,
        display_name: shown.displayname,
        avatar_url: shown.avatar_url,
    };
    Ok(Response::new(found.into_iter().map(user).collect(), limited))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::Server;

    #[tokio::test]
    async fn users_are_found_by_either_name_while_they_are_there() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        server.user("carol").await;
        let name = json!({ "displayname": "Big BEN" });
        bob.client.put("/_matrix/client/v3/profile/@bob:hs.test/displayname", name).await;
        let search = async |body: Value| {
            let answer = alice.client.post("/_matrix/client/v3/user_directory/search", body).await.json();
            let users = answer["results"].as_array().unwrap().clone();
            let ids: Vec<String> = users.iter().map(|user| user["user_id"].as_str().unwrap().to_owned()).collect();
            (ids.join(" "), answer["limited"].as_bool().unwrap())
        };
        assert_eq!(search(json!({ "search_term": "big ben" })).await, ("@bob:hs.test".to_owned(), false));
        assert_eq!(search(json!({ "search_term": "CAROL" })).await, ("@carol:hs.test".to_owned(), false));
        assert_eq!(search(json!({ "search_term": "hs.test", "limit": 1 })).await, ("@alice:hs.test".to_owned(), true));
        assert_eq!(search(json!({ "search_term": "nobody" })).await, (String::new(), false));
        bob.client.post("/_matrix/client/v3/account/deactivate", json!({ "auth": bob.auth() })).await;
        assert_eq!(search(json!({ "search_term": "ben" })).await, (String::new(), false));
    }
}

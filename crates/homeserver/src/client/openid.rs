//! OpenID tokens: with one, a third party learns who a user is, and nothing else.

use ruma::OwnedUserId;
use ruma::api::client::account::request_openid_token;
use ruma::api::federation::openid::get_openid_userinfo;
use ruma::authentication::TokenType;
use store::{Read as _, Tx};

use crate::auth::tokens;
use crate::client::account_data::own;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::schema::{TOKENS, TokenKind};

pub fn routes() -> Routes {
    Routes::default().ruma(request).ruma(user_info)
}

async fn request(ctx: Ctx<request_openid_token::v3::Request>) -> Result<request_openid_token::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    let app = &ctx.app;
    let issue = |tx: &mut Tx| tokens::issue_openid(app, tx, ctx.requester.user_id.as_str());
    let access_token = app.store.transact(issue).await?.value;
    let name = app.server_name.clone();
    Ok(request_openid_token::v3::Response::new(access_token, TokenType::Bearer, name, tokens::OPENID_LIFETIME))
}

/// Who holds the token asks; no other proof is needed, as the specification has it.
async fn user_info(ctx: Ctx<get_openid_userinfo::v1::Request>) -> Result<get_openid_userinfo::v1::Response> {
    let hash = tokens::hash(&ctx.request.access_token);
    let token = ctx.app.store.snapshot().get(&TOKENS, &hash)?;
    let token = token.filter(|token| token.kind == TokenKind::OpenId && !token.ended(ctx.app.clock.now_ms()));
    let user_id = token.ok_or_else(Error::unknown_token)?.user_id;
    Ok(get_openid_userinfo::v1::Response::new(OwnedUserId::try_from(user_id).map_err(Error::internal)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::Server;

    #[tokio::test]
    async fn pitfall_103_an_openid_token_says_who_one_is_for_a_while_and_nothing_else() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let path = "/_matrix/client/v3/user/@alice:hs.test/openid/request_token";
        assert_eq!(bob.client.post(path, json!({})).await.errcode(), "M_FORBIDDEN");
        let answer = alice.client.post(path, json!({})).await.json();
        let others = (&answer["token_type"], &answer["matrix_server_name"], &answer["expires_in"]);
        assert_eq!(others, (&json!("Bearer"), &json!("hs.test"), &json!(3_600)));
        let token = answer["access_token"].as_str().unwrap();
        let info = async |token: &str| {
            let path = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
            server.client.get(&path).await
        };
        assert_eq!(info(token).await.json(), json!({ "sub": "@alice:hs.test" }));
        assert_eq!(info("made-up").await.errcode(), "M_UNKNOWN_TOKEN");
        assert_eq!(info(&alice.token).await.status, 401);
        let whoami = server.client.with_token(token).get("/_matrix/client/v3/account/whoami").await;
        assert_eq!(whoami.errcode(), "M_UNKNOWN_TOKEN");
        server.app.clock.advance(tokens::OPENID_LIFETIME);
        assert_eq!(info(token).await.errcode(), "M_UNKNOWN_TOKEN");
    }
}

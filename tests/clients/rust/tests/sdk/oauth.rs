//! Logging in as Element X does it: over TLS, by OAuth, with the user's own browser; by a QR code that another device
//! shows; and that such a login is a whole one, with cross-signing and encryption.

use futures_util::StreamExt as _;
use matrix_sdk::authentication::oauth::qrcode::{
    GeneratedQrProgress, GrantLoginProgress, LoginProgress, QrCodeData, QrProgress,
};
use matrix_sdk::authentication::oauth::registration::{ApplicationType, ClientMetadata, Localized, OAuthGrantType};
use matrix_sdk::authentication::oauth::{ClientRegistrationData, OAuthAuthorizationData};
use matrix_sdk::encryption::{CrossSigningResetAuthType, VerificationState};
use matrix_sdk::reqwest::Url;
use matrix_sdk::ruma::api::client::discovery::get_authorization_server_metadata::v1::{
    AccountManagementActionData, Prompt,
};
use matrix_sdk::ruma::serde::Raw;
use matrix_sdk::{Client, HttpError, RefreshTokenError};

use crate::browser::Browser;
use crate::person::{PASSWORD, Person, app, until};
use crate::server::Server;

/// Of an app whose home is example.org.
const REDIRECT: &str = "org.example.tests:/callback";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_by_oauth_over_tls_is_refreshed_and_ends() {
    let server = Server::secured().await;
    let (client, mut browser) = (app(&server).await, Browser::of(&server));
    assert_eq!(client.homeserver().as_str(), format!("{}/", server.url), "as the server's name says");
    let metadata = client.oauth().server_metadata().await.unwrap();
    assert_eq!(metadata.issuer.as_str(), format!("{}/", server.url));

    // The user turns away at the last moment, and comes back.
    let wish = asked(&client, Some(Prompt::Create)).await;
    assert!(wish.url.query_pairs().any(|(name, value)| name == "code_challenge_method" && value == "S256"));
    browser.open(wish.url).await;
    opens_account(&mut browser, "alice").await;
    assert!(browser.shows("Test app") && browser.shows("example.org"), "who asks\n{}", browser.text());
    let answer = browser.press("Cancel").await;
    let refused = client.oauth().finish_login(answer.into()).await.unwrap_err();
    assert!(format!("{refused:?}").contains("Cancelled"), "{refused:?}");
    assert!(client.session_meta().is_none());
    browser.open(asked(&client, None).await.url).await;
    let answer = browser.press("Continue").await;
    assert!(answer.as_str().starts_with(REDIRECT), "{answer}");
    client.oauth().finish_login(answer.into()).await.unwrap();
    let alice = client.whoami().await.unwrap();
    assert_eq!(alice.user_id.as_str(), format!("@alice:{}", server.place()));
    assert_eq!(alice.device_id.as_deref(), client.device_id());

    let before = client.session_tokens().unwrap();
    client.oauth().refresh_access_token().await.unwrap();
    let after = client.session_tokens().unwrap();
    assert!(before.access_token != after.access_token && before.refresh_token != after.refresh_token);
    assert_eq!(client.whoami().await.unwrap().device_id.as_deref(), client.device_id());

    // A second device, which the first one's user logs out on the account page.
    let second = by_oauth(&server, &mut browser).await;
    let devices = client.devices().await.unwrap().devices;
    assert_eq!(devices.len(), 2);
    let page = |action| metadata.account_management_url_with_action(action).unwrap();
    browser.open(page(AccountManagementActionData::DevicesList)).await;
    let [first_id, second_id] = [&client, &second].map(|client| client.device_id().unwrap());
    assert!(browser.shows(first_id.as_str()) && browser.shows(second_id.as_str()), "{}", browser.text());
    browser.open(page(AccountManagementActionData::DeviceDelete(second_id.into()))).await;
    browser.press("Log this device out").await;
    until_logged_out(&second).await;
    assert_eq!(client.devices().await.unwrap().devices.len(), 1);

    // Its own end takes both tokens.
    client.oauth().logout().await.unwrap();
    until_logged_out(&client).await;

    // At a browser that knows nobody.
    let (third, mut browser) = (app(&server).await, Browser::of(&server));
    browser.open(asked(&third, None).await.url).await;
    browser.logs_in("alice").await;
    let answer = browser.press("Continue").await;
    third.oauth().finish_login(answer.into()).await.unwrap();
    assert_eq!(third.devices().await.unwrap().devices.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_oauth_encrypt_for_each_other_and_reset_their_keys() {
    let server = Server::secured().await;
    let (mut alices, mut bobs) = (Browser::of(&server), Browser::of(&server));
    let alice = Person::at(with_account(&server, &mut alices, "alice").await, "alice").await;
    let bob = Person::at(with_account(&server, &mut bobs, "bob").await, "bob").await;
    for person in [&alice, &bob] {
        let keys = person.client.encryption().cross_signing_status().await.unwrap();
        assert!(keys.is_complete(), "made without a password at the login: {keys:?}");
    }
    let room_id = alice.direct_room(&bob).await;
    let (at_alice, at_bob) = (alice.opens(&room_id).await, bob.opens(&room_id).await);
    at_alice.says("the wind turns").await;
    at_bob.until_reads("the wind turns").await;

    let second = Person::at(by_oauth(&server, &mut alices).await, "alice").await;
    let at_second = second.opens(&room_id).await;
    let second_id = second.client.device_id().unwrap();
    until("bob to know the second device", async || {
        bob.client.encryption().get_device(alice.user_id(), second_id).await.unwrap()
    })
    .await;
    at_bob.says("then we stay").await;
    for at in [&at_alice, &at_second] {
        at.until_reads("then we stay").await;
        assert!(at.is_encrypted("then we stay").await);
    }

    // It has lost everything, and begins anew: the user says so on the account page, with the password.
    assert_ne!(second.client.encryption().verification_state().get(), VerificationState::Verified);
    let reset = second.client.encryption().reset_cross_signing().await.unwrap().expect("the user is asked");
    let CrossSigningResetAuthType::OAuth(page) = reset.auth_type() else { panic!("not by OAuth: {reset:?}") };
    alices.open(page.approval_url.clone()).await;
    assert!(alices.shows(second_id.as_str()), "who asks for it\n{}", alices.text());
    alices.fill("password", PASSWORD);
    alices.press("Allow the reset").await;
    reset.auth(None).await.unwrap();
    let state = second.client.encryption().verification_state();
    until("the second device to vouch for itself", async || (state.get() == VerificationState::Verified).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_let_in_by_the_code_that_another_one_shows() {
    let server = Server::secured().await;
    let mut browser = Browser::of(&server);
    let alice = Person::at(with_account(&server, &mut browser, "alice").await, "alice").await;
    let fresh = app(&server).await;

    let oauth = alice.client.oauth();
    let grant = oauth.grant_login_with_qr_code().generate();
    let mut shown = grant.subscribe_to_progress();
    let user = async {
        let mut waiting_for_code = None;
        let mut scanned = None;
        while let Some(progress) = shown.next().await {
            match progress {
                GrantLoginProgress::EstablishingSecureChannel(GeneratedQrProgress::QrReady(code)) => {
                    // What a camera sees.
                    let code = QrCodeData::from_bytes(&code.to_bytes()).unwrap();
                    let (fresh, data) = (fresh.clone(), registration());
                    let (said, heard) = tokio::sync::oneshot::channel();
                    waiting_for_code = Some(heard);
                    scanned = Some(tokio::spawn(async move { scan(&fresh, &code, &data, said).await }));
                }
                GrantLoginProgress::EstablishingSecureChannel(GeneratedQrProgress::QrScanned(check)) => {
                    check.send(waiting_for_code.take().unwrap().await.unwrap()).await.unwrap();
                }
                GrantLoginProgress::WaitingForAuth { verification_uri } => {
                    browser.open(verification_uri).await;
                    assert!(browser.shows("Test app"), "who asks\n{}", browser.text());
                    browser.press("Continue").await;
                    assert!(browser.shows("The device is let in"), "{}", browser.text());
                }
                GrantLoginProgress::Starting | GrantLoginProgress::SyncingSecrets => {}
                GrantLoginProgress::Done => break,
            }
        }
        scanned.unwrap().await.unwrap();
    };
    let (granted, ()) = tokio::join!(grant.into_future(), user);
    granted.unwrap();

    // The new device is one that the old one vouched for, at once.
    assert_eq!(fresh.user_id(), alice.client.user_id());
    assert_eq!(alice.client.devices().await.unwrap().devices.len(), 2);
    let fresh = Person::at(fresh, "alice").await;
    let state = fresh.client.encryption().verification_state();
    until("the new device to be verified", async || (state.get() == VerificationState::Verified).then_some(())).await;
}

/// The side of the new device: tells the code to be compared, and comes in.
async fn scan(
    client: &Client,
    code: &QrCodeData,
    data: &ClientRegistrationData,
    said: tokio::sync::oneshot::Sender<u8>,
) {
    let oauth = client.oauth();
    let login = oauth.login_with_qr_code(Some(data)).scan(code);
    let mut progress = login.subscribe_to_progress();
    let shows = async {
        let mut said = Some(said);
        while let Some(state) = progress.next().await {
            match state {
                LoginProgress::EstablishingSecureChannel(QrProgress { check_code }) => {
                    said.take().unwrap().send(check_code.to_digit()).unwrap();
                }
                LoginProgress::Done => break,
                _ => {}
            }
        }
    };
    let (done, ()) = tokio::join!(login.into_future(), shows);
    done.unwrap();
}

fn registration() -> ClientRegistrationData {
    let home = Url::parse("https://example.org/app").unwrap();
    let by_code = OAuthGrantType::AuthorizationCode { redirect_uris: vec![REDIRECT.parse().unwrap()] };
    let grants = vec![by_code, OAuthGrantType::DeviceCode];
    let mut metadata = ClientMetadata::new(ApplicationType::Native, grants, Localized::new(home, []));
    metadata.client_name = Some(Localized::new("Test app".to_owned(), []));
    ClientRegistrationData::new(Raw::new(&metadata).unwrap())
}

/// The client registers itself, and wants to be let in.
async fn asked(client: &Client, prompt: Option<Prompt>) -> OAuthAuthorizationData {
    let oauth = client.oauth();
    let mut login = oauth.login(REDIRECT.parse().unwrap(), None, Some(registration()), None);
    if let Some(prompt) = prompt {
        login = login.prompt(vec![prompt]);
    }
    login.build().await.unwrap()
}

async fn opens_account(browser: &mut Browser, name: &str) {
    browser.fill("username", name);
    browser.fill("password", PASSWORD);
    browser.fill("again", PASSWORD);
    browser.press("Open the account").await;
}

/// A client that somebody opened an account for, and who stays logged in at the browser.
async fn with_account(server: &Server, browser: &mut Browser, name: &str) -> Client {
    let client = app(server).await;
    browser.open(asked(&client, Some(Prompt::Create)).await.url).await;
    opens_account(browser, name).await;
    let answer = browser.press("Continue").await;
    client.oauth().finish_login(answer.into()).await.unwrap();
    client
}

/// A client that whoever is logged in at the browser lets in.
async fn by_oauth(server: &Server, browser: &mut Browser) -> Client {
    let client = app(server).await;
    browser.open(asked(&client, None).await.url).await;
    let answer = browser.press("Continue").await;
    client.oauth().finish_login(answer.into()).await.unwrap();
    client
}

/// Neither its access token nor its refresh token, which the client turns to then, is worth anything.
async fn until_logged_out(client: &Client) {
    let error = until("the session to end", async || client.whoami().await.err()).await;
    assert!(
        matches!(&error, HttpError::RefreshToken(RefreshTokenError::OAuth(why)) if format!("{why:?}").contains("invalid_grant")),
        "{error:?}"
    );
}

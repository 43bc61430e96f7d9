document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const value = (id) => document.getElementById(id).value;
  const query = new URLSearchParams(location.search);
  const body = {
    type: "m.login.password",
    identifier: { type: "m.id.user", user: value("user") },
    password: value("password"),
  };
  for (const name of ["device_id", "initial_device_display_name"]) {
    if (query.has(name)) body[name] = query.get(name);
  }
  const failure = document.getElementById("failure");
  failure.textContent = "";
  try {
    const answer = await fetch("/_matrix/client/v3/login", { method: "POST", body: JSON.stringify(body) });
    const session = await answer.json();
    if (!answer.ok) failure.textContent = session.error || "This did not work";
    else if (window.matrixLogin && window.matrixLogin.onLogin) window.matrixLogin.onLogin(session);
    else if (window.onLogin) window.onLogin(session);
    else failure.textContent = "You are logged in, but no client waits for that here";
  } catch {
    failure.textContent = "The server does not answer";
  }
});

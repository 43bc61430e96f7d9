// Starts Hydrogen on this page. Where its files are, build.mjs fills in (ASSETS); where its homeserver is, the server
// says in config.json.

import { FeatureSet, Platform, RootViewModel, createNavigation, createRouter } from "hydrogen-view-sdk";

const platform = new Platform({ container: document.body, assetPaths: ASSETS, configURL: "config.json" });
const navigation = createNavigation();
platform.setNavigation(navigation);
await platform.init();
const urlRouter = createRouter({ navigation, history: platform.history });
urlRouter.attach();
const features = await FeatureSet.load(platform.settingsStorage);
const page = new RootViewModel({ platform, urlRouter, navigation, features });
await page.load();
platform.createAndMountRootView(page);

// What the front end shows of this pack: its templates in the order that a newcomer needs, as the server lists them by
// chance; a file in the menus as soon as a node has saved it, which else takes pressing R; and what an error says.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const ORDER = [
  "Edit a photo with the included model",
  "Try several strengths of an edit side by side",
  "Edit a photo with your own SD3.5, FLUX or other flow model",
  "Find the noise behind a photo and get the photo back",
  "Edit only a part of a photo",
  "Compare four ways to invert the same photo",
  "Invert in few steps with a trained solver",
  "Train a solver for your model",
  "Fit a solver to your model without photos",
  "Invert with a trained solver",
  "Invert a photo once and edit it often",
];

const asListed = api.getWorkflowTemplates;
if (asListed)
  api.getWorkflowTemplates = async function () {
    const packs = await asListed.call(api);
    for (const names of Object.values(packs))
      if (names.includes(ORDER[0])) names.sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
    return packs;
  };

// Newer front ends keep an error's text to their side panel, and name a node inside a closed subgraph: say it.
function say(type, detail) {
  if (!app.extensionManager?.setting?.get("Comfy.RightSidePanel.ShowErrorsTab")) return; // a dialog has it
  const summary = LiteGraph.registered_node_types[type]?.title ?? type;
  app.extensionManager.toast.add({ severity: "error", summary, detail, life: 20000 });
}

const asQueued = api.queuePrompt;
api.queuePrompt = async function (...given) {
  try {
    return await asQueued.apply(api, given);
  } catch (error) {
    for (const { class_type: type, errors } of Object.values(error?.response?.node_errors ?? {}))
      if (type.startsWith("DeepInv")) {
        const ours = errors.filter((one) => one.type === "custom_validation_failed");
        new Set(ours.map((one) => one.details.replace(/^\w+ - /, ""))).forEach((text) => say(type, text));
      }
    throw error;
  }
};

const seen = new Set();
app.registerExtension({
  name: "DeepInv.Shown",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const saved = (detail.output?.deepinv_saved ?? []).filter((name) => !seen.has(name));
      for (const name of saved) seen.add(name); // a node that isn't run again reports again
      if (saved.length) app.refreshComboInNodes?.();
    });
    api.addEventListener("execution_error", ({ detail }) => {
      if (detail.exception_type === "DeepInvError") say(detail.node_type, detail.exception_message);
    });
  },
});

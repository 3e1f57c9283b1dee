// The texts of the page in English and French, and numbers as the reader's language writes them.

const WORDS = {
  en: {
    prompt: "Prompt", write: "Write", more: "Go on", stop: "Stop", parameters: "Sampling parameters",
    expected: "expected", surprising: "surprising", why: "Why this token?", inside: "Inside", time: "Time",
    temperature: "Temperature", top_k: "Top-k", top_p: "Top-p", min_p: "Min-p",
    repetition_penalty: "Repetition penalty", seed: "Seed", count: "Length in tokens", all: "all", off: "off",
    factsAlone: "{class} with {parameters} parameters.",
    facts: "{class} with {parameters} parameters, after {step} steps of training.", bits: "{bits} bits per character.",
    cost: "Its weights are rounded to 8 bits, which costs {cost} bits per character.",
    rounded: "Its weights are rounded to 8 bits.", reading: "Reading the model…", writing: "Writing…",
    speed: "{n} tokens, {speed} a second.", headsOff: "Heads turned off: {n}.",
    unknown: "The model has never seen {tokens}: left out.",
    empty: "The prompt is empty, so the text begins with “{token}”.",
    text: "The text, {n} tokens. The arrow keys choose a token.", token: "{token}, {bits} bits of surprise",
    whyFirst: "No token comes before the first one, so this is the second.",
    whyWhere: "After “{context}” the model expects:", came: "written", candidate: "token", before: "before",
    after: "after",
    whyHint: "Outlined: before. Filled: after. Struck out: cut. ←: written. Select a token to write it here "
      + "instead, and go on from there; move a sampling parameter to see what it does.",
    stageAll: "All", cut: "−{n}",
    insideBigram: "The whole model: after the token of a row, how probable is the token of each column? The row "
      + "of the chosen place is framed.",
    insideGPT: "How the prediction after “{context}” comes about. After each layer: what the model would predict "
      + "if it ended there. The squares are the layer's heads: which token (row) looks at which tokens before it "
      + "(columns).",
    start: "Embeddings", layer: "Layer {n}", head: "Head {head} of layer {layer}", turnOff: "turn this head off",
    looks: "From “{token}” this head looks at: {list}.",
    offTitle: "The prediction with all heads (outlined), and without those turned off (filled)",
    follows: "After “{token}”: {list}.",
    timeHint: "Move through the training: the whole page shows the model of that step.",
    noSnapshots: "The run kept no snapshots; with checkpoint.snapshots: 10 it keeps ten.",
    leftOut: "Snapshots left out, so that this file stays small: {n}.", play: "Play", pause: "Pause",
    step: "step {step}", moment: "Step of the training", sampleOf: "Sample written at step {step}",
    noCurves: "The run has no recorded curves.",
    curve: "Bits per character over {n} steps: validation from {first} to {last}.", train: "training",
    val: "validation", steps: "steps", uniform: "uniform", unigram: "unigram", bigram: "bigram", xz: "xz",
    origin: "Made with minigpt {version}. This file works alone: nothing that is typed leaves it.",
    failed: "Something failed. {error}", other: "Français",
  },
  fr: {
    prompt: "Amorce", write: "Écrire", more: "Continuer", stop: "Arrêter", parameters: "Réglages du tirage",
    expected: "attendu", surprising: "surprenant", why: "Pourquoi ce jeton ?", inside: "Dedans", time: "Temps",
    temperature: "Température", top_k: "Top-k", top_p: "Top-p", min_p: "Min-p",
    repetition_penalty: "Pénalité de répétition", seed: "Graine", count: "Longueur en jetons", all: "tous",
    off: "aucune", factsAlone: "{class} de {parameters} paramètres.",
    facts: "{class} de {parameters} paramètres, après {step} étapes d'entraînement.",
    bits: "{bits} bits par caractère.",
    cost: "Ses poids sont arrondis à 8 bits, ce qui coûte {cost} bit par caractère.",
    rounded: "Ses poids sont arrondis à 8 bits.", reading: "Lecture du modèle…", writing: "Écriture…",
    speed: "{n} jetons, {speed} par seconde.", headsOff: "Têtes éteintes : {n}.",
    unknown: "Le modèle n'a jamais vu {tokens} : omis.",
    empty: "L'amorce est vide : le texte commence donc par « {token} ».",
    text: "Le texte, {n} jetons. Les flèches choisissent un jeton.", token: "{token}, surprise de {bits} bits",
    whyFirst: "Rien ne précède le premier jeton : voici donc le deuxième.",
    whyWhere: "Après « {context} », le modèle attend :", came: "écrit", candidate: "jeton", before: "avant",
    after: "après",
    whyHint: "En contour : avant. Plein : après. Barré : écarté. ← : écrit. Choisissez un jeton pour l'écrire "
      + "ici à la place et continuer à partir de là ; déplacez un réglage pour voir son effet.",
    stageAll: "Tout", cut: "−{n}",
    insideBigram: "Le modèle entier : après le jeton d'une ligne, quelle est la probabilité du jeton de chaque "
      + "colonne ? La ligne de l'endroit choisi est encadrée.",
    insideGPT: "Comment naît la prédiction après « {context} ». Après chaque couche : ce que le modèle prédirait "
      + "s'il s'arrêtait là. Les carrés sont les têtes de la couche : quel jeton (ligne) regarde quels jetons "
      + "précédents (colonnes).",
    start: "Plongements", layer: "Couche {n}", head: "Tête {head} de la couche {layer}", turnOff: "éteindre cette tête",
    looks: "Depuis « {token} », cette tête regarde : {list}.",
    offTitle: "La prédiction avec toutes les têtes (en contour), et sans celles qui sont éteintes (plein)",
    follows: "Après « {token} » : {list}.",
    timeHint: "Parcourez l'entraînement : toute la page montre le modèle de cette étape.",
    noSnapshots: "L'entraînement n'a pas gardé d'instantanés ; checkpoint.snapshots: 10 en garde dix.",
    leftOut: "Instantanés omis, pour que ce fichier reste petit : {n}.", play: "Lire", pause: "Pause",
    step: "étape {step}", moment: "Étape de l'entraînement", sampleOf: "Échantillon écrit à l'étape {step}",
    noCurves: "L'entraînement n'a pas de courbes enregistrées.",
    curve: "Bits par caractère sur {n} étapes : validation de {first} à {last}.", train: "entraînement",
    val: "validation", steps: "étapes", uniform: "uniforme", unigram: "unigramme", bigram: "bigramme", xz: "xz",
    origin: "Fait avec minigpt {version}. Ce fichier se suffit : rien de ce qui y est tapé n'en sort.",
    failed: "Quelque chose a échoué. {error}", other: "English",
  },
};

let language = (navigator.language || "en").startsWith("fr") ? "fr" : "en";

// Return a text in the reader's language, with values in place of {names}.
function say(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

function number(value, digits = 0) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function percent(share) {
  return share.toLocaleString(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

"""What the page says in each of its languages: `WORDS` stand on it, `NOTICES` are what the server answers."""

WORDS = {
    "en": {
        "title": "# minigpt\nA small model continues your text, one token at a time.",
        "run": "Checkpoint", "refresh": "Look for new runs", "prompt": "Beginning of the text", "examples": "Examples",
        "temperature": "Temperature", "temperature_info": "0 always takes the likeliest; above 1 it gets daring",
        "top_k": "Top-k", "top_k_info": "the k likeliest tokens; 0 for all", "top_p": "Top-p",
        "top_p_info": "the likeliest that reach this probability; 1 for all", "min_p": "Min-p",
        "min_p_info": "the least share of the likeliest one; 0 for none", "length": "Length in tokens",
        "seed": "Seed", "seed_info": "the same seed, the same text; empty for a new one each time",
        "stop_string": "Stop before", "samples": "Texts", "generate": "Write", "stop": "Stop", "text": "Text",
        "write": "Write", "look": "Look inside", "compare": "Compare", "other": "Other checkpoint",
        "both": "Write with both", "first": "The checkpoint on the left", "second": "The other one",
        "look_hint": "Each token is coloured by how much it surprised the model. Pick one to see what was expected in "
        "its place; what the controls cut is struck through.",
        "layer": "Layer", "head": "Head",
    },
    "fr": {
        "title": "# minigpt\nUn petit modèle continue votre texte, un jeton à la fois.",
        "run": "Checkpoint", "refresh": "Chercher de nouveaux entraînements", "prompt": "Début du texte",
        "examples": "Exemples", "temperature": "Température",
        "temperature_info": "0 prend toujours le plus probable ; au-delà de 1 il devient audacieux",
        "top_k": "Top-k", "top_k_info": "les k jetons les plus probables ; 0 pour tous", "top_p": "Top-p",
        "top_p_info": "les plus probables jusqu'à cette probabilité ; 1 pour tous", "min_p": "Min-p",
        "min_p_info": "la moindre part du plus probable ; 0 pour aucune", "length": "Longueur en jetons",
        "seed": "Graine", "seed_info": "même graine, même texte ; vide pour une nouvelle à chaque fois",
        "stop_string": "S'arrêter avant", "samples": "Textes", "generate": "Écrire", "stop": "Arrêter",
        "text": "Texte", "write": "Écrire", "look": "Regarder dedans", "compare": "Comparer",
        "other": "Autre checkpoint", "both": "Écrire avec les deux", "first": "Le checkpoint de gauche",
        "second": "L'autre",
        "look_hint": "Chaque jeton est coloré selon la surprise du modèle. Choisissez-en un pour voir ce qui était "
        "attendu à sa place ; ce que les réglages coupent est barré.",
        "layer": "Couche", "head": "Tête",
    },
}  # fmt: skip
NOTICES = {
    "en": {
        "no_run": "There is no run yet. Make one: `{}`",
        "gone": "The checkpoint `{}` is not there any more. Choose another.",
        "broken": "The checkpoint `{}` cannot be read: it is damaged. Choose another.",
        "dropped": "Never seen by this model, and left out: {}", "seed": "Seed {}",
        "picked": "after “{}”", "model": "the model", "left": "after the controls", "nothing": "Write a text first.",
        "came": "came",
        "transitions": "after the row's token, how likely is the column's",
        "attention": "layer {}, head {}: where each token (row) looks (column)",
    },
    "fr": {
        "no_run": "Il n'y a pas encore d'entraînement. Faites-en un : `{}`",
        "gone": "Le checkpoint `{}` n'est plus là. Choisissez-en un autre.",
        "broken": "Le checkpoint `{}` est illisible : il est abîmé. Choisissez-en un autre.",
        "dropped": "Jamais vus par ce modèle, et laissés de côté : {}", "seed": "Graine {}",
        "picked": "après « {} »", "model": "le modèle",
        "left": "après les réglages", "nothing": "Écrivez d'abord un texte.", "came": "arrivé",
        "transitions": "après le jeton de la ligne, la probabilité de celui de la colonne",
        "attention": "couche {}, tête {} : où chaque jeton (ligne) regarde (colonne)",
    },
}  # fmt: skip

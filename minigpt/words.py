"""The texts of the interface in each language: the page's labels, its answers, and the lines of a training.

`LABELS` are the parts of the page, which the browser translates. `MESSAGES` are what the server and the terminal write.
"""

import os
from string import Formatter

COLUMNS = 80  # of the lines that a training writes, whatever the width of the terminal
LABELS = {
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
MESSAGES = {
    "en": {
        "no_run": "There is no run yet. Make one: `{}`",
        "gone": "The checkpoint `{}` is not there any more. Choose another.",
        "broken": "The checkpoint `{}` cannot be read: it is damaged. Choose another.",
        "dropped": "Never seen by this model, and left out: {}", "seed": "Seed {}",
        "picked": "after “{}”", "model": "the model", "left": "after the controls", "nothing": "Write a text first.",
        "came": "came",
        # Figures.
        "figure_transitions": "What the model expects after each token",
        "figure_next_token": "The tokens of a line, and below each the {} that the model expected most",
        "figure_loss": "Mean loss at each position of the context",
        "figure_attention": "Where each token looks: the attention of every head",
        "figure_head": "Where each token looks: the attention of layer {}, head {}",
        "map_layer": "Layer {}, head {}", "map_head": "Head {1}",
        "token_read": "Token read", "next_token": "Next token", "probability": "Probability", "came_row": "text",
        "rank": "Rank", "in_order": "The line, token by token",
        "position": "Position in the context (tokens)", "loss_axis": "Loss (nats per token)",
        "not_finite": "The loss is not finite.", "token_looking": "Token that looks", "token_seen": "Token looked at",
        "weight": "Attention weight",
        # On the terminal: what is loaded, the model and its parts.
        "loading": "Loading {} …", "and": " and ", "characters": "characters", "tokens": "tokens", "reading": "reading",
        "learning": "learning tokens", "tokenising": "tokenising",
        "network": "{}, {:,} parameters, on {}",
        "training_text": "{:,} tokens to train on, {:,} distinct", "run_folder": "run folder {}",
        "embedding": "embedding", "embedding_role": "a vector of {:,} numbers for each of {:,} {}",
        "output": "output layer", "output_role": "a score for each of {:,} {}",
        "tied_role": "the embedding again: scores for {:,} {}", "with_biases": "{}, with biases",
        "n_grams": "n-grams", "n_grams_role": "vectors for the last 2 and 3 tokens, {:,} each",
        "positions": "positions", "learned_role": "a vector more for each of {:,} places in a window",
        "rope_role": "RoPE: queries and keys turn by an angle", "block": "1 block:", "blocks": "{:,} blocks:",
        "biases_role": "(with biases)", "attention_part": "attention",
        "head_role": "1 head of {} looks back and gathers", "heads_role": "{} heads of {} look back and gather",
        "grouped_role": "{} heads of {} ({} of keys and values) look back",
        "mlp_role": "{:,} numbers to {:,}, {}, and back",
        "gated_role": "{:,} numbers to {:,}, gated by {:,} more, and back", "norms": "norms",
        "norms_role": "2 × {}, to keep numbers in scale", "last_norm": "last norm",
        "last_norm_role": "{}, before the scores", "relu2": "ReLU squared", "number": "{:,}", "copies": "{} × {:,}",
        # The progress.
        "step": "step {}", "train_loss": "train loss {:.4f}", "of_step": "{} (step {})", "val_loss": "val loss {:.4f}",
        "bits": "bits/char {:.2f}", "speed": "{} tok/s", "thousand": "{}k", "million": "{}M", "decimal": "{:.1f}",
        "bar_loss": "loss {:.3f}", "bar_bits": "{:.2f} bits/char", "percent": "{:.0f}%", "bar_speed": "{:,.0f} {}/s",
        "elapsed": "{} elapsed", "remaining": "{} left",
        # What a training says of its settings and of its text.
        "setting_changed": "{}: {} when the run began, {} from here on.",
        "shortened": "The learning-rate schedule has {} steps, for which model.warmup_steps is {} in place of {}.",
        "schedule_longer": "The learning-rate schedule now covers {} steps, {} before: training continues after step "
        "{} at learning rate {:.3g}.",
        "rate_zero_to": "From step {} to {} the learning rate is 0, so nothing is learned. Raise model.decay_steps or "
        "model.min_lr.",
        "rate_zero_on": "From step {} on the learning rate is 0, so nothing is learned. Raise model.decay_steps or "
        "model.min_lr.",
        "unused_rates": "--optimizer {} is used, and these settings are not: {}.",
        "recites": "The model has {:,} parameters for {:,} characters: it will recite the text rather than learn from "
        "it. {} would suit.",
        "both_settings": " and ", "longer_text": "A longer text",
        "val_part": "Validation scores {:,} of {:,} tokens; `{}` scores them all.",
        "first_run": "There is no run of '{}' to continue yet: this is the first.",
        "other_bits": "The last bits will not be those of an undisturbed run: {}.", "in_place": "{} {} in place of {}",
        "outside_run": "{} lies outside a run folder: training goes on from its step {} in a new one.",
        "older": "{} is older than its run's last.ckpt: training goes on from step {} in a new run.",
        "val_fraction": "The text has {:,} characters: data.val_fraction is {} in place of {}, so that both parts hold "
        "a window.",
        "block_size": "The text has {} tokens to train on: data.block_size is {} in place of {}.",
        "encoding": "'{}' is not UTF-8; it is read as {}. If that is wrong, pass a different encoding with "
        "--data.encoding.",
        "encoding_rivals": "'{}' is not UTF-8; it is read as {}, but {} is about as likely. If accented letters come "
        "out wrong, pass --data.encoding {}.",
        "or": " or ",
        "compiling": "(compiling the training step, for up to a minute)",
        "compiled": "(compiled in {:.0f} s)",
        "not_compiled": "The step cannot be compiled here, for want of a C++ compiler perhaps; training goes on "
        "without.",
        "compiled_differs": "The compiled step gives other gradients than the model here; training goes on without it.",
        "compiling_decoding": "(compiling, for some seconds)",
        "fast_dev_run": "fast_dev_run: trained to step {} and validated; nothing was written.",
        "no_validation": "Trained {} steps, without a validation.",
        # The end.
        "stopped_early": "Stopped early, after step {}: {}", "was_stopped_early": "{} stopped early, after step {}: {}",
        "raise_max_steps": "Go on with a larger --trainer.max_steps.", "finished": "{} has done its {} steps.",
        "interrupted": "Stopped after step {}.", "go_on": "Go on with: {}",
        "time_used_up": "trainer.max_time is used up, after {} steps. Go on with a longer one.",
        "final_loss": "validation loss {:.4f} nats per token, {:.4f} bits per character",
        "duration": "after {}{} steps{} in {:.0f} s{}", "of_steps": " of {}", "last_steps": ", the last {}",
        "early": " (stopped early)", "baselines": "baselines in bits per character:", "baseline": "{} {:.4f}",
        "uniform": "uniform", "unigram": "unigram", "bigram": "bigram", "xz": "xz",
        "curves": "Curves and samples:", "more_text": "More text:",
    },
    "fr": {
        "no_run": "Il n'y a pas encore d'entraînement. Faites-en un : `{}`",
        "gone": "Le checkpoint `{}` n'est plus là. Choisissez-en un autre.",
        "broken": "Le checkpoint `{}` est illisible : il est abîmé. Choisissez-en un autre.",
        "dropped": "Jamais vus par ce modèle, et laissés de côté : {}", "seed": "Graine {}",
        "picked": "après « {} »", "model": "le modèle",
        "left": "après les réglages", "nothing": "Écrivez d'abord un texte.", "came": "arrivé",
        # Les figures.
        "figure_transitions": "Ce que le modèle attend après chaque token",
        "figure_next_token": "Les tokens d'une ligne et, sous chacun, les {} que le modèle attendait le plus",
        "figure_loss": "Perte moyenne à chaque position du contexte",
        "figure_attention": "Où regarde chaque token : l'attention de chaque tête",
        "figure_head": "Où regarde chaque token : l'attention de la couche {}, tête {}",
        "map_layer": "Couche {}, tête {}", "map_head": "Tête {1}",
        "token_read": "Token lu", "next_token": "Token suivant", "probability": "Probabilité", "came_row": "texte",
        "rank": "Rang", "in_order": "La ligne, token par token",
        "position": "Position dans le contexte (tokens)", "loss_axis": "Perte (nats par token)",
        "not_finite": "La perte n'est pas finie.", "token_looking": "Token qui regarde",
        "token_seen": "Token regardé", "weight": "Poids d'attention",
        # Au terminal : ce qui se charge, le modèle et ses parties.
        "loading": "Chargement de {} …", "and": " et de ", "characters": "caractères", "tokens": "jetons",
        "reading": "lecture", "learning": "apprentissage des jetons",
        "tokenising": "découpage", "network": "{}, {:,} paramètres, sur {}",
        "training_text": "{:,} jetons d'entraînement, dont {:,} distincts", "run_folder": "dossier {}",
        "embedding": "plongement", "embedding_role": "{:,} nombres pour chacun des {:,} {}",
        "output": "sortie", "output_role": "un score pour chacun des {:,} {}",
        "tied_role": "le plongement encore : scores des {:,} {}", "with_biases": "{}, avec biais",
        "n_grams": "n-grammes", "n_grams_role": "vecteurs des 2 et 3 derniers jetons, {:,} chacun",
        "positions": "positions", "learned_role": "un vecteur de plus pour chacune des {:,} places",
        "rope_role": "RoPE : requêtes et clés tournent d'un angle", "block": "1 bloc :", "blocks": "{:,} blocs :",
        "biases_role": "(avec biais)", "attention_part": "attention",
        "head_role": "1 tête de {} regarde en arrière et recueille",
        "heads_role": "{} têtes de {} regardent en arrière et recueillent",
        "grouped_role": "{} têtes de {} ({} de clés et valeurs) recueillent",
        "mlp_role": "de {:,} nombres à {:,}, {}, et retour",
        "gated_role": "de {:,} nombres à {:,}, filtrés par {:,}, et retour", "norms": "normes",
        "norms_role": "2 × {}, qui gardent l'échelle", "last_norm": "norme finale",
        "last_norm_role": "{}, avant les scores", "relu2": "ReLU au carré", "number": "{:,}", "copies": "{} × {:,}",
        # La progression.
        "step": "étape {}", "train_loss": "perte {:.4f}", "of_step": "{} (étape {})", "val_loss": "val. {:.4f}",
        "bits": "bits/car. {:.2f}", "speed": "{} jetons/s", "thousand": "{}k", "million": "{}M", "decimal": "{:.1f}",
        "bar_loss": "perte {:.3f}", "bar_bits": "{:.2f} bits/car.", "percent": "{:.0f} %", "bar_speed": "{:,.0f} {}/s",
        "elapsed": "{} écoulé", "remaining": "reste {}",
        # Ce qu'un entraînement dit de ses réglages et de son texte.
        "setting_changed": "{} : {} au début de l'entraînement, {} à partir d'ici.",
        "shortened": "Le taux d'apprentissage suit un plan de {} étapes : model.warmup_steps vaut {} au lieu de {}.",
        "schedule_longer": "Le plan du taux d'apprentissage couvre maintenant {} étapes au lieu de {} : l'entraînement "
        "reprend après l'étape {} au taux {:.3g}.",
        "rate_zero_to": "De l'étape {} à l'étape {} le taux d'apprentissage est nul : rien n'est appris. Augmentez "
        "model.decay_steps ou model.min_lr.",
        "rate_zero_on": "À partir de l'étape {} le taux d'apprentissage est nul : rien n'est appris. Augmentez "
        "model.decay_steps ou model.min_lr.",
        "unused_rates": "--optimizer {} est utilisé, et ces réglages ne le sont pas : {}.",
        "recites": "Le modèle a {:,} paramètres pour {:,} caractères : il récitera le texte au lieu d'apprendre. Ce "
        "qui conviendrait : {}.",
        "both_settings": " et ", "longer_text": "un texte plus long",
        "val_part": "La validation porte sur {:,} jetons sur {:,} ; `{}` porte sur tous.",
        "first_run": "Il n'y a pas encore d'entraînement de « {} » à reprendre : celui-ci est le premier.",
        "other_bits": "Les derniers bits ne seront pas ceux d'un entraînement sans arrêt : {}.",
        "in_place": "{} {} au lieu de {}",
        "outside_run": "{} n'est pas dans un dossier d'entraînement : on continue depuis son étape {} dans un nouveau.",
        "older": "{} est plus ancien que le last.ckpt de son dossier : on continue depuis l'étape {} dans un nouveau.",
        "val_fraction": "Le texte a {:,} caractères : data.val_fraction vaut {} au lieu de {}, pour que chaque partie "
        "contienne une fenêtre.",
        "block_size": "Le texte a {} jetons d'entraînement : data.block_size vaut {} au lieu de {}.",
        "encoding": "« {} » n'est pas en UTF-8 ; il est lu comme {}. Si ce n'est pas le bon codage, donnez-en un autre "
        "avec --data.encoding.",
        "encoding_rivals": "« {} » n'est pas en UTF-8 ; il est lu comme {}, mais {} est presque aussi probable. Si les "
        "accents sont faux, essayez --data.encoding {}.",
        "or": " ou ",
        "compiling": "(compilation de l'étape d'entraînement, une minute au plus)",
        "compiled": "(compilé en {:.0f} s)",
        "not_compiled": "L'étape ne peut pas être compilée ici, peut-être faute de compilateur C++ ; l'entraînement "
        "continue sans.",
        "compiled_differs": "L'étape compilée ne donne pas ici les gradients du modèle ; l'entraînement continue sans.",
        "compiling_decoding": "(compilation, quelques secondes)",
        "fast_dev_run": "fast_dev_run : entraîné jusqu'à l'étape {} et validé ; rien n'a été écrit.",
        "no_validation": "{} étapes d'entraînement, sans validation.",
        # La fin.
        "stopped_early": "Arrêt anticipé après l'étape {} : {}",
        "was_stopped_early": "{} : arrêt anticipé après l'étape {} : {}",
        "raise_max_steps": "Pour continuer, augmentez --trainer.max_steps.", "finished": "{} a fait ses {} étapes.",
        "interrupted": "Arrêté après l'étape {}.", "go_on": "Pour reprendre : {}",
        "time_used_up": "trainer.max_time est épuisé, après {} étapes. Pour continuer, augmentez-le.",
        "final_loss": "perte de validation : {:.4f} nats par jeton, {:.4f} bits par caractère",
        "duration": "après {0} étapes{1}{2} en {3:.0f} s{4}", "of_steps": " sur {}",
        "last_steps": ", dont les {} dernières",
        "early": " (arrêt anticipé)",
        "baselines": "valeurs de référence en bits par caractère :", "baseline": "{} {:.4f}",
        "uniform": "uniforme", "unigram": "unigramme", "bigram": "bigramme", "xz": "xz",
        "curves": "Courbes et échantillons :", "more_text": "Encore du texte :",
    },
}  # fmt: skip


class _FrenchFormatter(Formatter):
    """Writes numbers that have a format with a decimal comma, and with no-break spaces between thousands."""

    def format_field(self, value: object, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        french = isinstance(value, (int, float)) and format_spec
        return text.translate({ord(","): "\u00a0", ord("."): ","}) if french else text


_FORMATTERS = {"en": Formatter(), "fr": _FrenchFormatter()}


def locale_language() -> str:
    """Return `fr` where the locale is French, else `en`: the locale of messages, unless LANGUAGE prefers another."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    if locale.partition(".")[0] not in ("C", "POSIX"):  # they mean English, as in gettext
        locale = os.environ.get("LANGUAGE") or locale
    return "fr" if locale.lower().startswith("fr") else "en"


def message(name: str, *values: object, language: str | None = None) -> str:
    """Return one of `MESSAGES` with its values filled in.

    Args:
        name: The message's name.
        values: What its braces stand for.
        language: A key of `MESSAGES`; by default that of the locale.
    """
    language = language or locale_language()
    return _FORMATTERS[language].format(MESSAGES[language][name], *values)

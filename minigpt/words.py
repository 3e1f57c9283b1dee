"""The texts of the interface in English and French.

The browser chooses the language of the page's `LABELS`. The language of `MESSAGES`, which the server and the terminal
write, follows the visitor's browser on the page and the locale on the terminal.
"""

import os
from string import Formatter

COLUMNS = 80  # width of the lines that a training writes, whatever the width of the terminal
LABELS = {
    "en": {
        "title": "# minigpt\nA small model continues your text, one token at a time.",
        "run": "Checkpoint", "refresh": "Refresh the list", "prompt": "Prompt", "examples": "Examples",
        "temperature": "Temperature",
        "temperature_info": "0 always takes the likeliest token; above 1 rare tokens become more frequent",
        "top_k": "Top-k", "top_k_info": "keep the k likeliest tokens; 0 for all", "top_p": "Top-p",
        "top_p_info": "keep the likeliest tokens that reach this probability; 1 for all", "min_p": "Min-p",
        "min_p_info": "least probability, as a share of the likeliest token's; 0 for all",
        "length": "Length in tokens",
        "seed": "Seed", "seed_info": "the same seed gives the same text; empty for a new seed each time",
        "stop_string": "Stop before this text", "samples": "Texts", "generate": "Write", "stop": "Stop", "text": "Text",
        "write": "Write", "look": "Look inside", "compare": "Compare", "other": "Other checkpoint",
        "both": "Write with both",
        "look_hint": "The colour of a token shows how much it surprised the model. Select a token to see what the "
        "model expected there. Tokens that the sampling parameters exclude are struck through.",
        "layer": "Layer", "head": "Head", "parameters": "Sampling parameters", "download": "Download as a web page",
        "train": "Train", "paste": "Text to train on", "paste_info": "paste a text, or drop files below",
        "files": "Text files", "recipe": "Recipe", "recipe_info": "times were measured on a machine with two cores",
        "steps": "Steps", "steps_info": "those of the recipe, or fewer", "start": "Train",
        "go_on": "Continue the training",
    },
    "fr": {
        "title": "# minigpt\nUn petit modèle continue votre texte, un jeton à la fois.",
        "run": "Checkpoint", "refresh": "Actualiser la liste", "prompt": "Amorce",
        "examples": "Exemples", "temperature": "Température",
        "temperature_info": "0 choisit toujours le jeton le plus probable ; au-delà de 1, les jetons rares deviennent "
        "plus fréquents",
        "top_k": "Top-k", "top_k_info": "garde les k jetons les plus probables ; 0 pour tous", "top_p": "Top-p",
        "top_p_info": "garde les jetons les plus probables jusqu'à cette probabilité cumulée ; 1 pour tous",
        "min_p": "Min-p",
        "min_p_info": "probabilité minimale, en fraction de celle du jeton le plus probable ; 0 pour tous",
        "length": "Longueur en jetons",
        "seed": "Graine",
        "seed_info": "la même graine donne le même texte ; vide pour une nouvelle graine à chaque fois",
        "stop_string": "S'arrêter avant ce texte", "samples": "Textes", "generate": "Écrire", "stop": "Arrêter",
        "text": "Texte", "write": "Écrire", "look": "Regarder dedans", "compare": "Comparer",
        "other": "Autre checkpoint", "both": "Écrire avec les deux",
        "look_hint": "La couleur d'un jeton indique à quel point il a surpris le modèle. Sélectionnez un jeton pour "
        "voir ce que le modèle attendait à cet endroit. Les jetons que les réglages excluent sont barrés.",
        "layer": "Couche", "head": "Tête", "parameters": "Réglages du tirage",
        "download": "Télécharger en page web", "train": "Entraîner", "paste": "Texte d'entraînement",
        "paste_info": "collez un texte, ou déposez des fichiers ci-dessous", "files": "Fichiers de texte",
        "recipe": "Recette", "recipe_info": "durées mesurées sur une machine à deux cœurs", "steps": "Étapes",
        "steps_info": "celles de la recette, ou moins", "start": "Entraîner",
        "go_on": "Reprendre l'entraînement",
    },
}  # fmt: skip
MESSAGES = {
    "en": {
        "no_run": "There is no run yet. Start one: `{}`",
        "gone": "The checkpoint `{}` no longer exists. Choose another.",
        "broken": "The checkpoint `{}` cannot be read: it is damaged. Choose another.",
        "no_base": "The checkpoint `{}` holds adapters, and the model to which they belong is missing. Choose another.",
        "left_out": "Unknown to this model and left out: {}", "seed": "Seed {}",
        "picked": "after “{}”", "model": "the model", "left": "after filtering", "nothing": "Write a text first.",
        "came": "actual", "share": "{:.1%}", "surprisal": "{:.1f} bits",
        # The page: training.
        "no_text": "There is no text yet. Paste one, or drop a file.",
        "short_text": "The text has {:,} characters, and a training needs {:,} at least. Add more text.",
        "too_large": "The text has more than {} MB. Choose a part of it, or use the command `minigpt train`.",
        "too_many_files": "The page takes at most {} files. Join them, or drop fewer.",
        "wrong_kind": "The page does not take `{}`. It takes files that end in {}.",
        "not_text": "`{}` cannot be read as text. Save it as plain text and drop it again.",
        "no_recipe": "Choose one of the recipes.",
        "wrong_steps": "Give a whole number of steps from 1 to {} for {}.",
        "already_training": "A training of `{}` is running, and the page runs one at a time. Wait until it ends, or "
        "stop it.",
        "no_training": "There is no training that could be stopped or continued. Start one.",
        "training_off": "This page does not train: other machines can reach it. Whoever started it can allow training "
        "with `minigpt app --allow_training`.",
        "not_written": "The folder `{}` cannot be written to: {}. Free some space, or change its permissions.",
        "no_export": "This checkpoint cannot be written as a web page: {}",
        "text_kept": "Texts stay on this machine, in `{}`: {} MB at most, in files that end in {}.",
        "recipe_choice": "{}: {}, {:.1f} min", "recipe_tiny": "the article's model", "recipe_gpt_nano": "a small GPT-2",
        "recipe_modern_nano": "a modern transformer", "recipe_quick_nano": "a fast transformer",
        "recipe_llama_nano": "a small Llama", "recipe_bpe": "frequent runs of letters as tokens",
        "recipe_word": "words as tokens", "recipe_other": "{:,} steps",
        "status_starting": "The training of {} on {} is starting.",
        "status_running": "Training {} on {}: step {:,} of {:,}{}.", "status_left": ", about {} left",
        "status_stopping": "The training of {} on {} stops after this step.",
        "status_finished": "The training of {} on {} is complete: {:,} of {:,} steps. The model is in the tab Write.",
        "status_stopped": "The training of {} on {} was stopped after {:,} of {:,} steps.",
        "status_failed": "The training of {} on {} ended after {:,} of {:,} steps without saying why.",
        "status_failed_because": "The training of {} on {} ended after {:,} of {:,} steps: {}",
        "seconds": "{:.0f} s", "minutes": "{:.0f} min", "chart_y": "bits per character", "chart_x": "step",
        "chart_train": "training", "chart_val": "validation", "chart_point": "{} {:.2f}", "tick": "{:.1f}",
        "sample_head": "step {:,}", "sample_bits": "step {:,}: {:.2f} bits per character",
        "checkpoint_step": "step {:,}",
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
        # On the terminal: loading, the model and its parts.
        "loading": "Loading {} …", "and": " and ", "characters": "characters", "tokens": "tokens", "reading": "reading",
        "learning": "learning tokens", "tokenising": "tokenising",
        "network": "{}, {:,} parameters, on {}",
        "training_text": "{:,} tokens to train on, {:,} distinct", "run_folder": "run folder {}",
        "embedding": "embedding", "embedding_role": "a vector of {:,} numbers for each of {:,} {}",
        "output": "output layer", "output_role": "a score for each of {:,} {}",
        "tied_role": "the embedding again: scores for {:,} {}", "with_biases": "{}, with biases",
        "n_grams": "n-grams", "n_grams_role": "vectors for the last 2 and 3 tokens, {:,} each",
        "positions": "positions", "learned_role": "a vector for each of {:,} positions in a window",
        "rope_role": "RoPE: rotates queries and keys", "block": "1 block:", "blocks": "{:,} blocks:",
        "biases_role": "(with biases)", "attention_part": "attention",
        "head_role": "1 head of {} looks back and gathers", "heads_role": "{} heads of {} look back and gather",
        "grouped_role": "{} heads of {} ({} of keys and values) look back",
        "mlp_role": "{:,} numbers to {:,}, {}, and back",
        "gated_role": "{:,} numbers to {:,}, gated by {:,} more, and back", "norms": "norms",
        "norms_role": "2 × {}, to keep numbers in scale", "last_norm": "last norm",
        "last_norm_role": "{}, before the scores", "relu2": "ReLU squared", "number": "{:,}", "copies": "{} × {:,}",
        # Progress.
        "step": "step {}", "train_loss": "train loss {:.4f}", "of_step": "{} (step {})", "val_loss": "val loss {:.4f}",
        "bits": "bits/char {:.2f}", "speed": "{} tok/s", "thousand": "{}k", "million": "{}M", "decimal": "{:.1f}",
        "bar_loss": "loss {:.3f}", "bar_bits": "{:.2f} bits/char", "percent": "{:.0f}%", "bar_speed": "{:,.0f} {}/s",
        "elapsed": "{} elapsed", "remaining": "{} left",
        # Notes on settings and text.
        "setting_changed": "{} was {} when the run began and is now {}.",
        "shortened": "The learning-rate schedule has {} steps, so model.warmup_steps is {} instead of {}.",
        "schedule_longer": "The learning-rate schedule now covers {} steps instead of {}. Training continues after "
        "step {} at learning rate {:.3g}.",
        "rate_zero_to": "From step {} to {} the learning rate is 0, so nothing is learned. Raise model.decay_steps or "
        "model.min_lr.",
        "rate_zero_on": "From step {} on the learning rate is 0, so nothing is learned. Raise model.decay_steps or "
        "model.min_lr.",
        "unused_rates": "With --optimizer {} these settings have no effect: {}.",
        "oversized": "The model has {:,} parameters for {:,} characters: it will recite the text rather than learn "
        "from it. Better: {}.",
        "both_settings": " and ", "longer_text": "a longer text",
        "new_characters": "{} characters of the text are new to the model, and get rows that start at the mean of the "
        "others: {}",
        "lora": "LoRA: {:,} of {:,} parameters are trained.",
        "started_from": "The weights come from {}.",
        "longer_windows": "The windows are of {} tokens, and the model has learned from windows of {}: it has to learn "
        "the longer distances.",
        "val_part": "Validation scores {:,} of {:,} tokens; `{}` scores them all.",
        "first_run": "There is no run of '{}' to continue yet, so this is the first.",
        "other_bits": "The result will differ in its last bits from an uninterrupted run: {}.",
        "in_place": "{} {} instead of {}",
        "outside_run": "{} is not in a run folder, so training continues from its step {} in a new run.",
        "older": "{} is older than its run's last.ckpt, so training continues from step {} in a new run.",
        "val_fraction": "The text has {:,} characters, so data.val_fraction is {} instead of {}: both parts need at "
        "least one window.",
        "block_size": "The text has {} tokens to train on, so data.block_size is {} instead of {}.",
        "encoding": "'{}' is not UTF-8; it is read as {}. If that is wrong, pass a different encoding with "
        "--data.encoding.",
        "encoding_rivals": "'{}' is not UTF-8; it is read as {}, but {} is about as likely. If accented letters come "
        "out wrong, pass --data.encoding {}.",
        "or": " or ",
        "slow_bf16": "This CPU has no instructions for bfloat16, so {} is many times as slow as float32 here: pass "
        "--trainer.precision 32.",
        "compiling": "(compiling the training step, for up to a minute)",
        "compiled": "(compiled in {:.0f} s)",
        "not_compiled": "The step cannot be compiled here, perhaps because there is no C++ compiler. Training "
        "continues uncompiled.",
        "compiled_differs": "The compiled step gives different gradients here. Training continues uncompiled.",
        "compiling_decoding": "(compiling, for some seconds)",
        "fast_dev_run": "fast_dev_run: trained to step {} and validated; nothing was written.",
        "no_validation": "Trained {} steps, without a validation.",
        # The end.
        "stopped_early": "Stopped early, after step {}: {}", "was_stopped_early": "{} stopped early, after step {}: {}",
        "raise_max_steps": "To continue, raise --trainer.max_steps.", "finished": "{} has completed its {} steps.",
        "interrupted": "Stopped after step {}.", "go_on": "Continue with: {}",
        "time_used_up": "trainer.max_time was reached after {} steps. To continue, raise it.",
        "final_loss": "validation loss {:.4f} nats per token, {:.4f} bits per character",
        "duration": "after {}{} steps{} in {:.0f} s{}", "of_steps": " of {}", "last_steps": ", the last {}",
        "early": " (stopped early)", "baselines": "baselines in bits per character:", "baseline": "{} {:.4f}",
        "uniform": "uniform", "unigram": "unigram", "bigram": "bigram", "xz": "xz",
        "curves": "Curves and samples:", "more_text": "More text:",
        # The table of `evaluate`.
        "score_loss": "loss", "unit_loss": "  nats per token", "score_bits_per_char": "bits per char",
        "score_perplexity": "perplexity", "score_accuracy": "accuracy", "score_tokens": "tokens",
        "score_characters": "characters", "score_baselines": "baselines (bits per char)", "score_uniform": "uniform",
        "score_unigram": "unigram", "score_bigram": "bigram", "score_xz": "xz", "score_memorisation": "memorisation",
        "score_samples": "samples", "score_text": "text", "score_longest_overlap": "longest overlap",
        "score_share": "share", "score_overlap": "overlap", "score": "{:,.4f}",
        # Notes of the other commands.
        "ignored": "Ignoring {} in the environment: no launcher started this process.",
        "ignored_alone": "Ignoring {} in the environment: this training has one process.",
        "long_prompt": "The model sees only the last {:,} tokens of this prompt.",
        "compare_step": "step", "compare_bits_axis": "validation bits per character",
        "compare_difference_axis": "bits per character more than {}",
        "compare_position_axis": "tokens of context", "compare_token_bits_axis": "bits per token",
        "seed_begins": "\nSeed {}, run {} of {}", "seed_row": "seed {:<6} {:.4f} bits/char  {}",
        "seed_mean": "mean of {}   {:.4f} ± {:.4f} bits/char (standard deviation)",
        "seeds_again": "The same command goes on with this seed and the others.",
        "still_training": "{} is still training: its best checkpoint so far is scored.",
        "same_seed": "{} has the same seed as {} and is left out.", "scoring": "Scoring {} …",
        "compare_bits": "bits/char", "compare_loss": "loss", "compare_tokens": "tokens",
        "compare_parameters": "parameters", "compare_seconds": "seconds", "compare_score": "{:.3f}",
        "compare_loss_value": "{:.4f}", "compare_change": "{:+.4f}", "compare_settings": "Settings that differ:",
        "compare_kinds": "Where {} differs from {}, in bits per character of the whole text:",
        "compare_passages": "Where {} gains and loses most against {}, in bits per character of the passage:",
        "kind_space": "white space", "kind_first": "first letter of a word", "kind_letter": "other letters",
        "kind_digit": "digits", "kind_mark": "punctuation and signs",
        "verdict_clear": "{} is better than {} by {:.4f} ± {:.4f} bits per character: the difference is clear.",
        "verdict_unclear": "{} and {} cannot be told apart: they differ by {:.4f} ± {:.4f} bits per character.",
        "verdict_one_seed": "This is about these two trainings. How much another seed changes is unknown: train "
        "each with several seeds.",
        "verdict_one_side": "Only one side has several seeds; the other is taken to vary as much.",
        "verdict_needed": "About {} seeds for each would be needed, if the difference is as large as it seems.",
        "verdict_never": "Even 1,000 seeds for each would not be enough, if the difference is as small as it seems.",
        "verdict_text": "This text is too short to tell: about {:,.0f} characters at least would be needed.",
        "html_size": "The page has {:.2f} MB. Steps with weights: {}.",
        "html_left_out": "Snapshots left out to stay below --max_mb {1:g}: {0}.",
        "html_unusable": "The snapshot '{}' is left out: it is damaged, has diverged or belongs to another network.",
        "html_cost": "Rounding to 8 bits costs {:+.4f} bits per character; --precision 32 costs nothing.",
        "no_baselines": "No baselines: {}", "searched": "Only the first {:,} tokens of the training text are searched.",
        "shipped_config": "Using {}. To use the file in this folder, pass {}.yaml.",
        "pruned": "Pruned: half of the other trials were better at this step.", "trial_pruned": "pruned",
        "sweep_stopped": "Stopped. Continue with: {}",
        "trials_running": "Waiting for other processes' trials; an interrupted one is retried after some {} seconds …",
        "trial_taken": "Another process took this trial after {} seconds without a sign of life. Joining in again.",
        "sweep_columns": "trial|bits/char|state|steps", "trial_complete": "complete", "trial_broke": "broke",
        "train_best": "Train with the best settings:", "compare_best": "Compare the best two trials:",
    },
    "fr": {
        "no_run": "Il n'y a pas encore d'entraînement. Lancez-en un : `{}`",
        "gone": "Le checkpoint `{}` n'existe plus. Choisissez-en un autre.",
        "broken": "Le checkpoint `{}` est illisible : il est endommagé. Choisissez-en un autre.",
        "no_base": "Le checkpoint `{}` contient des adaptateurs, mais le modèle auquel ils s'ajoutent manque. "
        "Choisissez-en un autre.",
        "left_out": "Inconnus de ce modèle et omis : {}", "seed": "Graine {}",
        "picked": "après « {} »", "model": "le modèle",
        "left": "après filtrage", "nothing": "Écrivez d'abord un texte.", "came": "réel", "share": "{:.1%}",
        "surprisal": "{:.1f} bits",
        # La page : l'entraînement.
        "no_text": "Il n'y a pas encore de texte. Collez-en un, ou déposez un fichier.",
        "short_text": "Le texte a {:,} caractères ; il en faut au moins {:,} pour un entraînement. Ajoutez du texte.",
        "too_large": "Le texte dépasse {} Mo. Choisissez-en une partie, ou entraînez avec la commande `minigpt train`.",
        "too_many_files": "La page accepte au plus {} fichiers. Réunissez-les, ou déposez-en moins.",
        "wrong_kind": "La page n'accepte pas `{}`. Elle accepte les fichiers qui finissent par {}.",
        "not_text": "`{}` n'est pas lisible comme texte. Enregistrez-le en texte brut et déposez-le à nouveau.",
        "no_recipe": "Choisissez l'une des recettes.",
        "wrong_steps": "Donnez un nombre entier d'étapes de 1 à {} pour {}.",
        "already_training": "Un entraînement de `{}` est en cours, et la page n'en mène qu'un à la fois. Attendez sa "
        "fin, ou arrêtez-le.",
        "no_training": "Aucun entraînement n'est à arrêter ni à reprendre. Lancez-en un.",
        "training_off": "Cette page n'entraîne pas : d'autres machines peuvent l'atteindre. La personne qui l'a lancée "
        "peut le permettre avec `minigpt app --allow_training`.",
        "not_written": "Le dossier `{}` n'est pas accessible en écriture : {}. Libérez de la place, ou changez ses "
        "droits.",
        "no_export": "Ce checkpoint ne peut pas devenir une page web : {}",
        "text_kept": "Les textes restent sur cette machine, dans `{}` : {} Mo au plus, en fichiers finissant par "
        "{}.",
        "recipe_choice": "{} : {}, {:.1f} min", "recipe_tiny": "le modèle de l'article",
        "recipe_gpt_nano": "un petit GPT-2", "recipe_modern_nano": "un transformer moderne",
        "recipe_quick_nano": "un transformer rapide", "recipe_llama_nano": "un petit Llama",
        "recipe_bpe": "suites fréquentes de lettres comme jetons", "recipe_word": "mots comme jetons",
        "recipe_other": "{:,} étapes",
        "status_starting": "L'entraînement de {} sur {} commence.",
        "status_running": "Entraînement de {} sur {} : étape {:,} sur {:,}{}.",
        "status_left": ", encore {} environ",
        "status_stopping": "L'entraînement de {} sur {} s'arrête après cette étape.",
        "status_finished": "L'entraînement de {} sur {} est terminé : {:,} étapes sur {:,}. Le modèle est dans "
        "l'onglet Écrire.",
        "status_stopped": "L'entraînement de {} sur {} a été arrêté après {:,} étapes sur {:,}.",
        "status_failed": "L'entraînement de {} sur {} s'est interrompu après {:,} étapes sur {:,}, sans dire pourquoi.",
        "status_failed_because": "L'entraînement de {} sur {} s'est interrompu après {:,} étapes sur {:,} : {}",
        "seconds": "{:.0f} s", "minutes": "{:.0f} min", "chart_y": "bits par caractère", "chart_x": "étape",
        "chart_train": "entraînement", "chart_val": "validation", "chart_point": "{} {:.2f}", "tick": "{:.1f}",
        "sample_head": "étape {:,}", "sample_bits": "étape {:,} : {:.2f} bits par caractère",
        "checkpoint_step": "étape {:,}",
        # Les figures.
        "figure_transitions": "Ce que le modèle attend après chaque jeton",
        "figure_next_token": "Les jetons d'une ligne et, sous chacun, les {} que le modèle attendait le plus",
        "figure_loss": "Perte moyenne à chaque position du contexte",
        "figure_attention": "Où regarde chaque jeton : l'attention de chaque tête",
        "figure_head": "Où regarde chaque jeton : l'attention de la couche {}, tête {}",
        "map_layer": "Couche {}, tête {}", "map_head": "Tête {1}",
        "token_read": "Jeton lu", "next_token": "Jeton suivant", "probability": "Probabilité", "came_row": "texte",
        "rank": "Rang", "in_order": "La ligne, jeton par jeton",
        "position": "Position dans le contexte (jetons)", "loss_axis": "Perte (nats par jeton)",
        "not_finite": "La perte n'est pas finie.", "token_looking": "Jeton qui regarde",
        "token_seen": "Jeton regardé", "weight": "Poids d'attention",
        # Au terminal : le chargement, le modèle et ses parties.
        "loading": "Chargement de {} …", "and": " et de ", "characters": "caractères", "tokens": "jetons",
        "reading": "lecture", "learning": "apprentissage des jetons",
        "tokenising": "découpage", "network": "{}, {:,} paramètres, sur {}",
        "training_text": "{:,} jetons d'entraînement, dont {:,} distincts", "run_folder": "dossier {}",
        "embedding": "plongement", "embedding_role": "{:,} nombres pour chacun des {:,} {}",
        "output": "sortie", "output_role": "un score pour chacun des {:,} {}",
        "tied_role": "le même plongement : scores des {:,} {}", "with_biases": "{}, avec biais",
        "n_grams": "n-grammes", "n_grams_role": "vecteurs des 2 et 3 derniers jetons, {:,} chacun",
        "positions": "positions", "learned_role": "un vecteur pour chacune des {:,} positions",
        "rope_role": "RoPE : rotation des requêtes et des clés", "block": "1 bloc :", "blocks": "{:,} blocs :",
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
        # Notes sur les réglages et le texte.
        "setting_changed": "{} valait {} au début de l'entraînement et vaut maintenant {}.",
        "shortened": "Le plan du taux d'apprentissage compte {} étapes : model.warmup_steps vaut {} au lieu de {}.",
        "schedule_longer": "Le plan du taux d'apprentissage couvre maintenant {} étapes au lieu de {} : l'entraînement "
        "reprend après l'étape {} au taux {:.3g}.",
        "rate_zero_to": "De l'étape {} à l'étape {} le taux d'apprentissage est nul : rien n'est appris. Augmentez "
        "model.decay_steps ou model.min_lr.",
        "rate_zero_on": "À partir de l'étape {} le taux d'apprentissage est nul : rien n'est appris. Augmentez "
        "model.decay_steps ou model.min_lr.",
        "unused_rates": "Avec --optimizer {}, ces réglages sont sans effet : {}.",
        "oversized": "Le modèle a {:,} paramètres pour {:,} caractères : il récitera le texte au lieu d'en "
        "apprendre. Préférez {}.",
        "both_settings": " et ", "longer_text": "un texte plus long",
        "new_characters": "{} caractères du texte sont nouveaux pour le modèle ; leurs lignes partent de la moyenne "
        "des autres : {}",
        "lora": "LoRA : {:,} paramètres sur {:,} sont entraînés.",
        "started_from": "Les poids viennent de {}.",
        "longer_windows": "Les fenêtres ont {} jetons, alors que le modèle a appris de fenêtres de {} : il lui reste à "
        "apprendre les distances plus longues.",
        "val_part": "La validation porte sur {:,} des {:,} jetons ; `{}` les évalue tous.",
        "first_run": "Il n'y a pas encore d'entraînement de « {} » à reprendre : celui-ci est le premier.",
        "other_bits": "Le résultat différera dans ses derniers bits d'un entraînement ininterrompu : {}.",
        "in_place": "{} {} au lieu de {}",
        "outside_run": "{} n'est pas dans un dossier d'entraînement : un nouvel entraînement reprend à son étape {}.",
        "older": "{} est plus ancien que le last.ckpt de son dossier : un nouvel entraînement reprend à l'étape {}.",
        "val_fraction": "Le texte a {:,} caractères : data.val_fraction vaut {} au lieu de {}, pour que chaque partie "
        "contienne une fenêtre.",
        "block_size": "Le texte a {} jetons d'entraînement : data.block_size vaut {} au lieu de {}.",
        "encoding": "« {} » n'est pas en UTF-8 ; il est lu en {}. Si ce n'est pas le bon encodage, indiquez-en un "
        "autre avec --data.encoding.",
        "encoding_rivals": "« {} » n'est pas en UTF-8 ; il est lu en {}, mais {} est presque aussi probable. Si les "
        "accents sont faux, essayez --data.encoding {}.",
        "or": " ou ",
        "slow_bf16": "Ce processeur n'a pas d'instructions pour bfloat16 : {} y est bien plus lent que float32. "
        "Passez --trainer.precision 32.",
        "compiling": "(compilation de l'étape d'entraînement, une minute au plus)",
        "compiled": "(compilé en {:.0f} s)",
        "not_compiled": "L'étape ne peut pas être compilée ici, peut-être faute de compilateur C++. L'entraînement "
        "continue sans compilation.",
        "compiled_differs": "L'étape compilée donne ici d'autres gradients. L'entraînement continue sans compilation.",
        "compiling_decoding": "(compilation, quelques secondes)",
        "fast_dev_run": "fast_dev_run : entraîné jusqu'à l'étape {} et validé ; rien n'a été écrit.",
        "no_validation": "{} étapes d'entraînement, sans validation.",
        # La fin.
        "stopped_early": "Arrêt anticipé après l'étape {} : {}",
        "was_stopped_early": "{} : arrêt anticipé après l'étape {} : {}",
        "raise_max_steps": "Pour continuer, augmentez --trainer.max_steps.", "finished": "{} a terminé ses {} étapes.",
        "interrupted": "Arrêt après l'étape {}.", "go_on": "Pour reprendre : {}",
        "time_used_up": "trainer.max_time est atteint après {} étapes. Pour continuer, augmentez-le.",
        "final_loss": "perte de validation : {:.4f} nats par jeton, {:.4f} bits par caractère",
        "duration": "après {0} étapes{1}{2} en {3:.0f} s{4}", "of_steps": " sur {}",
        "last_steps": ", dont les {} dernières",
        "early": " (arrêt anticipé)",
        "baselines": "valeurs de référence en bits par caractère :", "baseline": "{} {:.4f}",
        "uniform": "uniforme", "unigram": "unigramme", "bigram": "bigramme", "xz": "xz",
        "curves": "Courbes et échantillons :", "more_text": "Encore du texte :",
        # Le tableau de `evaluate`.
        "score_loss": "perte", "unit_loss": "  nats par jeton", "score_bits_per_char": "bits par caractère",
        "score_perplexity": "perplexité", "score_accuracy": "exactitude", "score_tokens": "jetons",
        "score_characters": "caractères", "score_baselines": "valeurs de référence (bits par caractère)",
        "score_uniform": "uniforme", "score_unigram": "unigramme", "score_bigram": "bigramme", "score_xz": "xz",
        "score_memorisation": "mémorisation", "score_samples": "textes générés", "score_text": "texte de validation",
        "score_longest_overlap": "plus long emprunt", "score_share": "part", "score_overlap": "emprunt",
        "score": "{:,.4f}",
        # Notes des autres commandes.
        "ignored": "{} : variables d'environnement ignorées, car aucun lanceur n'a démarré ce processus.",
        "ignored_alone": "{} : variables d'environnement ignorées, car cet entraînement n'a qu'un processus.",
        "long_prompt": "Le modèle ne voit que les {:,} derniers jetons de cette amorce.",
        "compare_step": "étape", "compare_bits_axis": "bits par caractère en validation",
        "compare_difference_axis": "bits par caractère de plus que {}",
        "compare_position_axis": "jetons de contexte", "compare_token_bits_axis": "bits par jeton",
        "seed_begins": "\nGraine {}, entraînement {} sur {}", "seed_row": "graine {:<6} {:.4f} bits/car.  {}",
        "seed_mean": "moyenne de {}  {:.4f} ± {:.4f} bits/car. (écart type)",
        "seeds_again": "La même commande continue cette graine et les suivantes.",
        "still_training": "{} s'entraîne encore : son meilleur checkpoint jusqu'ici est évalué.",
        "same_seed": "{} a la même graine que {} et est laissé de côté.", "scoring": "Évaluation de {} …",
        "compare_bits": "bits/car.", "compare_loss": "perte",
        "compare_tokens": "jetons", "compare_parameters": "paramètres", "compare_seconds": "secondes",
        "compare_score": "{:.3f}", "compare_loss_value": "{:.4f}", "compare_change": "{:+.4f}",
        "compare_settings": "Réglages qui diffèrent :",
        "compare_kinds": "Où {} diffère de {}, en bits par caractère du texte entier :",
        "compare_passages": "Où {} gagne et perd le plus face à {}, en bits par caractère du passage :",
        "kind_space": "blancs", "kind_first": "première lettre d'un mot", "kind_letter": "autres lettres",
        "kind_digit": "chiffres", "kind_mark": "ponctuation et signes",
        "verdict_clear": "{} est meilleur que {} de {:.4f} ± {:.4f} bit par caractère : la différence est nette.",
        "verdict_unclear": "{} et {} ne se départagent pas : ils diffèrent de {:.4f} ± {:.4f} bit par caractère.",
        "verdict_one_seed": "Cela vaut pour ces deux entraînements. On ignore ce que change une autre graine : "
        "entraînez chacun avec plusieurs graines.",
        "verdict_one_side": "Un seul côté a plusieurs graines ; on suppose que l'autre varie autant.",
        "verdict_needed": "Il faudrait environ {} graines de chaque côté, si la différence est ce qu'elle paraît.",
        "verdict_never": "Même 1 000 graines de chaque côté ne suffiraient pas, si la différence est si petite.",
        "verdict_text": "Ce texte est trop court pour trancher : il en faudrait au moins {:,.0f} caractères environ.",
        "html_size": "La page pèse {:.2f} Mo. Étapes dont elle a les poids : {}.",
        "html_left_out": "Instantanés omis pour rester sous --max_mb {1:g} : {0}.",
        "html_unusable": "L'instantané '{}' est omis : il est abîmé, a divergé ou appartient à un autre réseau.",
        "html_cost": "L'arrondi à 8 bits coûte {:+.4f} bit par caractère ; --precision 32 ne coûte rien.",
        "no_baselines": "Pas de valeurs de référence : {}",
        "searched": "La recherche porte sur les {:,} premiers jetons du texte d'entraînement.",
        "shipped_config": "Utilisation de {}. Pour utiliser le fichier de ce dossier, donnez {}.yaml.",
        "pruned": "Essai abandonné : la moitié des autres étaient meilleurs à cette étape.",
        "trial_pruned": "abandonné",
        "sweep_stopped": "Arrêt. Pour reprendre : {}",
        "trials_running": "Attente des essais d'autres processus ; un essai interrompu est repris après {} secondes…",
        "trial_taken": "Un autre processus a pris cet essai, resté {} secondes sans signe de vie. On continue.",
        "sweep_columns": "essai|bits/car.|état|pas", "trial_complete": "complet", "trial_broke": "échec",
        "train_best": "Entraîner avec les meilleurs réglages :", "compare_best": "Comparer les deux meilleurs essais :",
    },
}  # fmt: skip


class _FrenchFormatter(Formatter):
    """Formats numbers in French: a decimal comma, no-break spaces between thousands and before the per cent sign."""

    def format_field(self, value: object, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        french = isinstance(value, (int, float)) and format_spec
        return text.translate({ord(","): "\u00a0", ord("."): ",", ord("%"): "\u202f%"}) if french else text


_FORMATTERS = {"en": Formatter(), "fr": _FrenchFormatter()}


def locale_language() -> str:
    """Return `fr` if the locale for messages is French, else `en`; LANGUAGE overrides the locale, as in gettext."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    if locale.partition(".")[0] not in ("C", "POSIX"):  # they mean English, as in gettext
        locale = os.environ.get("LANGUAGE") or locale
    return "fr" if locale.lower().startswith("fr") else "en"


def message(name: str, *values: object, language: str | None = None) -> str:
    """Return one of `MESSAGES` with its values inserted.

    Args:
        name: The message's name.
        *values: The values of its replacement fields.
        language: `en` or `fr`; None for the language of the locale.
    """
    language = language or locale_language()
    return _FORMATTERS[language].format(MESSAGES[language][name], *values)

"""The wordings of the synthetic corpus's long thoughts. Data only.

`(a|b)` is a choice that `src.data.sources.synthetic.thoughts.spin` makes, `{tool}` and the like are filled in. Most
words are single tokens of the tiny tokenizer, so that a choice of wording is an uncertain token.
"""

from __future__ import annotations

TOPIC_KNOWN = (
    "(So|Now), the user (wants|needs|asks for) this: {topic}",
    "(This|The request) is (about|for) (this|something that a tool can do|one of my tools): {topic}",
    "(The user|The request) (asks me to do this|needs help with this|needs a tool for this): {topic}",
    "Let me (see|look|check), the user (wants|needs|asks for) this: {topic}",
)
TOPIC_OPEN = (
    "(So|Now), the user (wants|needs|asks for) something and I (look for|need|have to find) a tool for it",
    "Let me (see|look|check) (what|how much of this) (the tools|my tools) can do for the user",
    "The user (wants|needs|asks for) something, so let me (see|check|look at) (the tools|my tools|the list of tools)",
)
TOPIC_ANSWERED = (
    "(So|Now), what the user (wanted|needed|asked for) is done: {topic}",
    "(The tools have answered|There is a result), and it is about this: {topic}",
    "Let me (see|look|check), the user (wanted|needed|asked for) this: {topic}",
)
UNFIT = (
    "{tool} is (for|about) (something else|other things|another need): {about}",
    "(Then|Also|Now) {tool}: {about}, (which|that) is (not asked for|not what the user wants|of no use here)",
    "{tool} takes {parameters}, (which does not fit|but that is not asked for|so it is not right)",
    "There is (also|still) {tool} with {parameters}, (but not for this|which can not help|of no use here)",
    "Can {tool} (do it|help|be of use)? (No, it does this|Not here, it does this|No, that is for this): {about}",
    "I (do not need|can not use|have no use for) {tool} (here|now|for this|this time)",
    "{tool} can be (left out|left off|put off), it (is not about this|does not do this|is no help)",
)
FIT = (
    "{tool} is (for|about) (just this|this very need|what the user wants): {about}",
    "(Then|Also|Now) {tool}: {about}, (which|that) is (asked for|what the user wants|of use here)",
    "{tool} takes {parameters}, (which does fit|and that is asked for|so it is right)",
    "There is (also|still) {tool} with {parameters}, (just for this|which can help|of use here)",
    "Can {tool} (do it|help|be of use)? (Yes, it does this|It can, it does this|Yes, that is for this): {about}",
)
CALLED = (
    "{tool} (was|has been) called, (it is done|its result is there|that is over)",
    "(Then|Also|Now) {tool}: {about}, (which|that) is (done|over|there by now)",
    "{tool} had its {parameters}, (and its result is there|and it is done|so that is over)",
)
PLACES = {
    "request": ("The user (gives|names|has put in) the {keys}", "The request (gives|has|shows) the {keys}",
                "I (find|see|have) the {keys} in the request", "For the {keys} I (use|look at|see) the request"),
    "reply": ("The reply (gives|has|shows) the {keys}", "I (find|see|have) the {keys} in the reply",
              "The user (gives|names|has put in) the {keys} now"),
    "result": ("The (result|tool) (gave|had|shows) the {keys}", "I (find|see|have) the {keys} in the result"),
    "earlier": ("The (first request|user) (gave|had|named) the {keys} (ahead of this|before)",
                "I (find|see|have) the {keys} in the first request"),
    "": ("I (find|see|have) no {keys} in the request", "The user (gives|names|has put in) no {keys}",
         "For the {keys} there is (nothing|no value|no word)"),
}  # fmt: skip
ORDINALS = ("first", "second", "third")
MUSINGS = (
    "(I should|Let me|I have to) (look at|check|see) (the tools|each tool|the list) (one by one|once more|with care)",
    "(A|Each) (name|value|number) (has to|should) be (as|just as) (it is given|it was given|the user has it)",
    "(Which|What) tool (fits|can do this|is right|is of use|takes this)?",
    "The user (may|can) (want|need|ask for) (more|other things|something else) (then|still|after this)",
    "A call (needs|has|takes) (a name|the name of a tool) and (its values|what the tool takes|the parameters)",
    "(And then|So|Now), what (is left|is to be done|should I do|do I need|do I know)?",
    "(By now|So far), (all is plain|I see no problem|this is not much|I know what I need)",
    "The list (has|shows|names) (all tools|each tool that I can use|what each tool takes)",
    "One (step|thing|tool) at a time, (no need to run|there is time|so let me see|then I know)",
    "(This|That) (is not hard|can be done|takes some thought|should not take me much time)",
    "I (have|see|know) the (request|words of the user) and (the tools|the list|what my tools can do)",
    "The (order|place) of the tools (is of no use|is not a reason|has nothing to say|does not help)",
    "(A|Each) tool can do (what it is for|no more than it is for|one thing and nothing else)",
    "The name of a tool (says much|shows its use|is a help|can say what it does)",
    "(A call is for a tool|To a tool goes a call) and (a response is for the user|to the user goes a response)",
    "(I look|Let me look) at (the names|the request|the parameters) (once more|now|with care|then)",
)
NONE_FITS = ("No tool fits.", "There is no tool for this.")
NOTHING_LEFT = ("I can answer now.", "Nothing is left to call.")
FIRST_ONLY = (
    "(That is the first of it|One is a start|The rest can be done then), so I make one call (now|for now)",
    "I (start with|do|take) the first (now|for now) and (leave|put off) the rest",
)
PROMISED = (
    "{tool} can do it, (but|still) I (first|just) (tell the user|say) that I will",
    "This takes {tool}, (but|still) for now I (first|just) (tell the user|say) that I will",
)
NEAREST = (
    "No tool fits (as it is|in full), but {tool} is (near|not far off), so I (make up|find) (its values|what it takes)",
    "There is no tool for this, (still|but) I (can|may) (run|use|try) {tool} and (make up|find) what it takes",
)
MADE_UP = (
    "Nobody gave the {key}, so I (make something up|put in something)",
    "I do not know the {key}, (but|so|still) I (can|may) (make something up|put in something)",
)
